package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"agent/internal/inventory"
	"agent/internal/repo"
)

// Info is what `repo info --json` prints.
type Info struct {
	Time         time.Time     `json:"time"`
	Deep         bool          `json:"deep"`
	Repositories []InfoPlace   `json:"repositories"`
	Clusters     []InfoCluster `json:"clusters"`
}

// InfoPlace is what one repository holds.
type InfoPlace struct {
	Repository string       `json:"repository"`
	URL        string       `json:"url"`
	Required   bool         `json:"required"`
	ID         string       `json:"id,omitempty"`
	Created    *time.Time   `json:"created,omitempty"`
	Objects    int64        `json:"objects"`
	Bytes      int64        `json:"bytes"`
	Kinds      []InfoKind   `json:"kinds"`
	Growth     []InfoGrowth `json:"growth"`
	Cost       *InfoCost    `json:"cost,omitempty"`
	Clusters   []InfoShare  `json:"clusters"`
	Error      string       `json:"error,omitempty"`
}

// InfoKind is how much there is of a kind of objects.
type InfoKind struct {
	Kind    string `json:"kind"`
	Objects int64  `json:"objects"`
	Bytes   int64  `json:"bytes"`
}

// InfoGrowth is what was stored in the last days and is still there.
type InfoGrowth struct {
	Days        int     `json:"days"`
	Objects     int64   `json:"objects"`
	Bytes       int64   `json:"bytes"`
	BytesPerDay float64 `json:"bytes_per_day"`
	PutsPerDay  float64 `json:"puts_per_day"`
}

// InfoCost is what a repository costs in a month at the configured prices.
type InfoCost struct {
	Currency string  `json:"currency"`
	Storage  float64 `json:"storage_per_month"`
	Puts     float64 `json:"puts_per_month"`
	Total    float64 `json:"total_per_month"`
	Restore  float64 `json:"restore_requests"`
}

// InfoShare is what a repository holds of one cluster.
type InfoShare struct {
	SystemIdentifier string       `json:"system_identifier"`
	Objects          int64        `json:"objects"`
	Bytes            int64        `json:"bytes"`
	Oldest           time.Time    `json:"oldest_object"`
	Newest           time.Time    `json:"newest_object"`
	Kinds            []InfoKind   `json:"kinds"`
	Growth           []InfoGrowth `json:"growth"`
	Packs            []InfoKind   `json:"packs"`
}

// InfoCluster is what is known of a cluster, whatever the repository.
type InfoCluster struct {
	SystemIdentifier string       `json:"system_identifier"`
	Recoverable      []InfoWindow `json:"recoverable"`
	Backups          []InfoBackup `json:"backups"`
	DeadBytes        *int64       `json:"dead_bytes,omitempty"`
	Errors           []string     `json:"errors"`
}

// InfoWindow is a stretch of time any moment of which can be recovered.
type InfoWindow struct {
	Timeline uint32    `json:"timeline"`
	Backup   string    `json:"backup"`
	Oldest   time.Time `json:"oldest"`
	Newest   time.Time `json:"newest"`
	LastWAL  string    `json:"last_wal"`
}

// InfoBackup is a backup and its packs.
type InfoBackup struct {
	Backup        string `json:"backup"`
	Type          string `json:"type"`
	OwnPacks      int64  `json:"own_packs"`
	OwnBytes      int64  `json:"own_bytes"`
	BorrowedPacks int64  `json:"borrowed_packs"`
	BorrowedBytes int64  `json:"borrowed_bytes"`
	LentPacks     int64  `json:"lent_packs"`
	LentBytes     int64  `json:"lent_bytes"`
	DeadBytes     *int64 `json:"dead_bytes,omitempty"`
}

// Prices are what a store takes; one that is 0 is not known.
type Prices struct {
	StorageGBMonth, Put1000, Get1000 float64
	Currency                         string
}

// The month by which costs are told.
const daysPerMonth = 365.0 / 12

// restoreRequests is how many a restore makes besides one for each pack, at the
// most.
const restoreRequests = 6

// growthForCost is which of the spans of growth the cost of requests is told by:
// a week has all that comes back every week.
const growthForCost = 1

// InfoOf describes an inventory; prices are those of each repository, by name.
func InfoOf(inv *inventory.Inventory, prices map[string]Prices) Info {
	d := Info{Time: inv.At.UTC().Truncate(time.Millisecond), Deep: inv.Deep, Repositories: []InfoPlace{}, Clusters: []InfoCluster{}}
	for _, p := range inv.Places {
		d.Repositories = append(d.Repositories, placeOf(inv, p, prices[p.Name]))
	}
	for _, c := range inv.Clusters {
		d.Clusters = append(d.Clusters, clusterOf(inv, c))
	}
	return d
}

func placeOf(inv *inventory.Inventory, p *inventory.Place, prices Prices) InfoPlace {
	d := InfoPlace{
		Repository: p.Name, URL: p.URL, Required: p.Required, ID: p.Marker.ID,
		Objects: p.Total.Objects, Bytes: p.Total.Bytes, Kinds: kindsOf(p.Kinds), Growth: []InfoGrowth{}, Clusters: []InfoShare{},
	}
	if p.Err != nil {
		d.Error = oneLine(p.Err)
		return d
	}
	created := p.Marker.Created
	d.Created, d.Growth = &created, growthOf(&p.Holding, inv.At)
	if prices.StorageGBMonth > 0 || prices.Put1000 > 0 || prices.Get1000 > 0 {
		d.Cost = costOf(d, restoreGets(inv), prices)
	}
	for _, id := range slices.Sorted(maps.Keys(p.Clusters)) {
		h := p.Clusters[id]
		d.Clusters = append(d.Clusters, InfoShare{
			SystemIdentifier: id.String(), Objects: h.Total.Objects, Bytes: h.Total.Bytes, Oldest: h.Oldest.UTC(), Newest: h.Newest.UTC(),
			Kinds: kindsOf(h.Kinds), Growth: growthOf(&h.Holding, inv.At), Packs: []InfoKind{
				use("needed", h.Packs.Needed), use("lent", h.Packs.Lent), use("outlived", h.Packs.Outlived),
				use("unfinished", h.Packs.Unfinished), use("dead", h.Packs.Dead),
			},
		})
	}
	return d
}

func use(name string, c inventory.Count) InfoKind { return InfoKind{name, c.Objects, c.Bytes} }

// kindsOf are the kinds, that with the most bytes first.
func kindsOf(kinds map[inventory.Kind]inventory.Count) []InfoKind {
	all := make([]InfoKind, 0, len(kinds))
	for k, c := range kinds {
		all = append(all, use(string(k), c))
	}
	slices.SortFunc(all, func(a, b InfoKind) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Kind, b.Kind)) })
	return all
}

func growthOf(h *inventory.Holding, now time.Time) []InfoGrowth {
	var all []InfoGrowth
	for _, g := range h.Growth(now) {
		all = append(all, InfoGrowth{g.Days, g.Stored.Objects, g.Stored.Bytes, math.Round(g.BytesPerDay), math.Round(g.PutsPerDay*10) / 10})
	}
	return all
}

// restoreGets is how many requests it takes to read the newest backup of each
// cluster.
func restoreGets(inv *inventory.Inventory) (gets int64) {
	for _, c := range inv.Clusters {
		if n := len(c.Backups); n > 0 {
			gets += c.Backups[n-1].Own.Objects + c.Backups[n-1].Borrowed.Objects + restoreRequests
		}
	}
	return gets
}

func costOf(d InfoPlace, gets int64, p Prices) *InfoCost {
	c := &InfoCost{
		Currency: p.Currency,
		Storage:  cents(float64(d.Bytes) / 1e9 * p.StorageGBMonth),
		Puts:     cents(d.Growth[growthForCost].PutsPerDay * daysPerMonth / 1000 * p.Put1000),
		Restore:  cents(float64(gets) / 1000 * p.Get1000),
	}
	c.Total = cents(c.Storage + c.Puts)
	return c
}

// cents rounds to a hundredth of a cent.
func cents(v float64) float64 { return math.Round(v*1e4) / 1e4 }

func clusterOf(inv *inventory.Inventory, c *inventory.Cluster) InfoCluster {
	d := InfoCluster{SystemIdentifier: c.ID.String(), Recoverable: []InfoWindow{}, Backups: []InfoBackup{}, Errors: []string{}}
	for _, err := range []error{c.NoWindows, c.Unread} {
		if err != nil {
			d.Errors = append(d.Errors, oneLine(err))
		}
	}
	for _, w := range c.Windows {
		d.Recoverable = append(d.Recoverable, InfoWindow{
			Timeline: uint32(w.Timeline), Backup: string(w.Backup), Oldest: w.From.UTC(), Newest: w.Until.UTC(), LastWAL: w.LastName,
		})
	}
	for _, b := range c.Backups {
		one := InfoBackup{
			Backup: string(b.Name), Type: b.Type, OwnPacks: b.Own.Objects, OwnBytes: b.Own.Bytes,
			BorrowedPacks: b.Borrowed.Objects, BorrowedBytes: b.Borrowed.Bytes, LentPacks: b.Lent.Objects, LentBytes: b.Lent.Bytes,
		}
		if inv.Deep {
			one.DeadBytes = &b.Dead
		}
		d.Backups = append(d.Backups, one)
	}
	if inv.Deep {
		d.DeadBytes = &c.DeadFrames
	}
	return d
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// InfoJSON prints an object.
func InfoJSON(w io.Writer, d Info) error { return writeJSON(w, d) }

// InfoTable prints, for each repository, its kinds of objects, growth and cost,
// and for each cluster what can be recovered and its backups' packs.
func InfoTable(w io.Writer, d Info) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range d.Repositories {
		p.table(t)
	}
	for _, c := range d.Clusters {
		c.table(t)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// line ends the columns of the table so far.
func line(t *tabwriter.Writer, format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }

func (p InfoPlace) table(t *tabwriter.Writer) {
	line(t, "repository %s: %s", p.Repository, p.URL)
	if p.Error != "" {
		line(t, "  cannot be listed: %s", p.Error)
		return
	}
	line(t, "  format %d, id %s, made %s", repo.Format, p.ID, p.Created.UTC().Format(time.RFC3339))
	row(t, "  kind", "objects", "size")
	for _, k := range p.Kinds {
		row(t, "  "+k.Kind, number(k.Objects), size(k.Bytes))
	}
	row(t, "  all", number(p.Objects), size(p.Bytes))
	for _, g := range p.Growth {
		span := "last day"
		if g.Days > 1 {
			span = fmt.Sprintf("last %d days", g.Days)
		}
		line(t, "  %s: %s objects, %s; %s and %s PUT a day", span, number(g.Objects), size(g.Bytes), size(int64(g.BytesPerDay)), decimal(g.PutsPerDay, 1))
	}
	if c := p.Cost; c != nil {
		money := func(v float64) string { return strings.TrimSpace(decimal(v, 2) + " " + c.Currency) }
		line(t, "  a month: %s (storage %s, PUT %s); requests of a restore: %s", money(c.Total), money(c.Storage), money(c.Puts), money(c.Restore))
	}
	for _, c := range p.Clusters {
		line(t, "  cluster %s: %s objects, %s", c.SystemIdentifier, number(c.Objects), size(c.Bytes))
		var parts []string
		for _, k := range c.Packs {
			parts = append(parts, fmt.Sprintf("%s %s in %s", k.Kind, size(k.Bytes), number(k.Objects)))
		}
		line(t, "    packs: %s", strings.Join(parts, ", "))
	}
}

func (c InfoCluster) table(t *tabwriter.Writer) {
	line(t, "cluster %s", c.SystemIdentifier)
	for _, e := range c.Errors {
		line(t, "  not all is known: %s", e)
	}
	if len(c.Recoverable) == 0 {
		line(t, "  nothing can be recovered")
	}
	for _, w := range c.Recoverable {
		line(t, "  timeline %d: recoverable from %s to %s, with backup %s and WAL to %s", w.Timeline,
			w.Oldest.Format(time.RFC3339), w.Newest.Format(time.RFC3339), w.Backup, w.LastWAL)
	}
	if len(c.Backups) == 0 {
		return
	}
	head := []string{"  backup", "type", "own", "borrowed", "lent"}
	if c.DeadBytes != nil {
		head = append(head, "dead")
	}
	row(t, head...)
	for _, b := range c.Backups {
		cells := []string{"  " + b.Backup, b.Type, size(b.OwnBytes), size(b.BorrowedBytes), size(b.LentBytes)}
		if b.DeadBytes != nil {
			cells = append(cells, size(*b.DeadBytes))
		}
		row(t, cells...)
	}
	if c.DeadBytes != nil {
		line(t, "  dead in packs that are needed: %s", size(*c.DeadBytes))
	}
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

func decimal(v float64, places int) string { return strconv.FormatFloat(v, 'f', places, 64) }
