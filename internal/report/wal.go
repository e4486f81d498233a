package report

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"agent/internal/archive"
	"agent/internal/backlog"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// WAL is what `wal-show --json` prints.
type WAL struct {
	SystemIdentifier string          `json:"system_identifier"`
	SegmentSize      int64           `json:"wal_segment_size"`
	Timelines        []WALTimeline   `json:"timelines"`
	Repositories     []WALRepository `json:"repositories"`
	// Unserved are backups whose own WAL is not whole.
	Unserved []string `json:"unserved_backups"`
	Backlog  *Backlog `json:"backlog,omitempty"`
}

// WALTimeline is a timeline in WAL.
type WALTimeline struct {
	Timeline       uint32     `json:"timeline"`
	Parent         uint32     `json:"parent,omitempty"`
	SwitchLSN      string     `json:"switch_lsn,omitempty"` // where it left its parent
	Segments       uint64     `json:"segments"`
	RawBytes       int64      `json:"raw_bytes"`
	StoredBytes    int64      `json:"stored_bytes"`
	FirstTime      *time.Time `json:"first_time,omitempty"`
	LastTime       *time.Time `json:"last_time,omitempty"`
	SegmentsPerDay float64    `json:"segments_per_day,omitempty"`
	StoredPerDay   int64      `json:"stored_bytes_per_day,omitempty"`
	Ranges         []WALRange `json:"ranges"`
	Gaps           []WALGap   `json:"gaps"`
}

// WALRange is a row of segments without a hole.
type WALRange struct {
	First       string    `json:"first"`
	Last        string    `json:"last"`
	Segments    uint64    `json:"segments"`
	RawBytes    int64     `json:"raw_bytes"`
	StoredBytes int64     `json:"stored_bytes"`
	FirstTime   time.Time `json:"first_time"`
	LastTime    time.Time `json:"last_time"`
	Backups     []string  `json:"backups"`
}

// WALGap is a row of segments that are not there.
type WALGap struct {
	First    string `json:"first"`
	Last     string `json:"last"`
	Segments uint64 `json:"segments"`
	Dropped  bool   `json:"dropped"`
	// Expired is that a delete took them, which nothing needs any more.
	Expired bool `json:"expired"`
	// Open is that no backup has begun behind dropped segments.
	Open bool `json:"open"`
}

// WALRepository is what one repository has, and lacks of what another one has.
type WALRepository struct {
	Repository  string   `json:"repository"`
	URL         string   `json:"url"`
	Required    bool     `json:"required"`
	Segments    uint64   `json:"segments"`
	StoredBytes int64    `json:"stored_bytes"`
	Lacks       []WALGap `json:"lacks"`
	Error       string   `json:"error,omitempty"`
}

// Backlog is what waits to be archived on this host.
type Backlog struct {
	Status            string     `json:"status"`
	Reasons           []string   `json:"reasons"`
	Waiting           int        `json:"waiting"`
	WaitingSegments   int        `json:"waiting_segments"`
	WaitingBytes      int64      `json:"waiting_bytes"`
	Oldest            *time.Time `json:"oldest,omitempty"`
	OldestSeconds     float64    `json:"oldest_seconds"`
	MadePerSecond     float64    `json:"made_per_second"`
	ArchivedPerSecond float64    `json:"archived_per_second"`
	FreeBytes         int64      `json:"free_bytes"`
	FullInSeconds     *float64   `json:"full_in_seconds,omitempty"`
}

// rateSpan is over how much time at least a rate per day is told.
const rateSpan = time.Hour

// WALOf describes a survey; waiting is this host's backlog, nil if it is not
// known.
func WALOf(s *archive.Survey, waiting *backlog.Backlog) (WAL, error) {
	w := WAL{
		SystemIdentifier: s.Cluster.String(), SegmentSize: int64(s.Size),
		Timelines: []WALTimeline{}, Repositories: []WALRepository{}, Unserved: []string{},
	}
	serving := make(map[int][]string)
	for _, b := range s.Backups {
		ranges, err := s.Serves(b)
		if err != nil {
			return w, fmt.Errorf("find the WAL of backup %s: %w", b.Name, err)
		}
		if len(ranges) == 0 {
			w.Unserved = append(w.Unserved, string(b.Name))
		}
		for _, i := range ranges {
			serving[i] = append(serving[i], string(b.Name))
		}
	}
	for _, t := range s.Timelines() {
		w.Timelines = append(w.Timelines, timelineOf(s, t, serving))
	}
	for _, p := range s.Scan.Places {
		w.Repositories = append(w.Repositories, repositoryOf(s, p))
	}
	if waiting != nil {
		b := BacklogOf(*waiting)
		w.Backlog = &b
	}
	return w, nil
}

func timelineOf(s *archive.Survey, t postgres.Timeline, serving map[int][]string) WALTimeline {
	d := WALTimeline{Timeline: uint32(t), Ranges: []WALRange{}, Gaps: []WALGap{}}
	if h := s.Histories[t]; len(h) > 1 {
		d.Parent, d.SwitchLSN = uint32(h[len(h)-2].Timeline), h[len(h)-2].Switch.String()
	}
	var first, last time.Time
	for i, r := range s.Scan.Ranges {
		if r.First.Timeline != t {
			continue
		}
		backups := serving[i]
		if backups == nil {
			backups = []string{}
		}
		d.Ranges = append(d.Ranges, WALRange{
			First: r.First.Name(s.Size), Last: r.Last.Name(s.Size), Segments: r.Segments(), RawBytes: int64(r.Segments()) * int64(s.Size),
			StoredBytes: r.Bytes, FirstTime: r.Since.UTC(), LastTime: r.Until.UTC(), Backups: backups,
		})
		d.Segments += r.Segments()
		d.StoredBytes += r.Bytes
		if first.IsZero() || r.Since.Before(first) {
			first = r.Since.UTC()
		}
		if r.Until.After(last) {
			last = r.Until.UTC()
		}
	}
	d.RawBytes = int64(d.Segments) * int64(s.Size)
	if d.Segments > 0 {
		d.FirstTime, d.LastTime = &first, &last
	}
	if span := last.Sub(first); span >= rateSpan {
		days := span.Hours() / 24
		d.SegmentsPerDay = float64(int64(float64(d.Segments)/days*10)) / 10
		d.StoredPerDay = int64(float64(d.StoredBytes) / days)
	}
	for _, g := range s.Gaps(t) {
		d.Gaps = append(d.Gaps, WALGap{
			First: g.First.Name(s.Size), Last: g.Last.Name(s.Size), Segments: g.Segments(), Dropped: g.Dropped, Expired: g.Expired, Open: g.Open,
		})
	}
	return d
}

func repositoryOf(s *archive.Survey, p repo.WALHeld) WALRepository {
	d := WALRepository{Repository: p.Name, URL: p.URL, Required: p.Required, Lacks: []WALGap{}}
	for _, r := range p.Ranges {
		d.Segments += r.Segments()
		d.StoredBytes += r.Bytes
	}
	if p.Err != nil {
		d.Error = oneLine(p.Err)
		return d // what it lacks is not known
	}
	for _, r := range s.Scan.Ranges {
		for _, m := range archive.Missing(p.Ranges, archive.Span{First: r.First, Last: r.Last}) {
			d.Lacks = append(d.Lacks, WALGap{First: m.First.Name(s.Size), Last: m.Last.Name(s.Size), Segments: m.Segments()})
		}
	}
	return d
}

// BacklogOf describes a backlog.
func BacklogOf(b backlog.Backlog) Backlog {
	level, reasons := b.Level()
	if reasons == nil {
		reasons = []string{}
	}
	d := Backlog{
		Status: string(level), Reasons: reasons, Waiting: b.Files, WaitingSegments: b.Segments, WaitingBytes: b.Bytes,
		OldestSeconds: b.Age().Round(time.Second).Seconds(), MadePerSecond: float64(int64(b.Made)), ArchivedPerSecond: float64(int64(b.Archived)),
		FreeBytes: b.Free,
	}
	if !b.Oldest.IsZero() {
		at := b.Oldest.UTC()
		d.Oldest = &at
	}
	if full, ok := b.FullIn(); ok {
		seconds := full.Round(time.Second).Seconds()
		d.FullInSeconds = &seconds
	}
	return d
}

// WALJSON prints an object.
func WALJSON(w io.Writer, d WAL) error { return writeJSON(w, d) }

// WALTable prints a line for each range and gap, then one for each repository,
// and the backlog.
func WALTable(w io.Writer, d WAL, waiting *backlog.Backlog) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row(t, "timeline", "state", "first", "last", "segments", "size", "stored", "archived_from", "archived_to", "backups")
	for _, l := range d.Timelines {
		for _, line := range l.lines() {
			row(t, line...)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	var b strings.Builder
	for _, l := range d.Timelines {
		if l.Parent != 0 {
			fmt.Fprintf(&b, "timeline %d left timeline %d at %s\n", l.Timeline, l.Parent, l.SwitchLSN)
		}
		if l.SegmentsPerDay > 0 {
			fmt.Fprintf(&b, "timeline %d: %.1f segments a day, %s stored\n", l.Timeline, l.SegmentsPerDay, size(l.StoredPerDay))
		}
	}
	for _, name := range d.Unserved {
		fmt.Fprintf(&b, "backup %s cannot be restored: WAL that it needs is missing\n", name)
	}
	for _, p := range d.Repositories {
		switch {
		case p.Error != "":
			fmt.Fprintf(&b, "repository %s: cannot be listed: %s\n", p.Repository, p.Error)
		default:
			fmt.Fprintf(&b, "repository %s: %d segments, %s stored%s\n", p.Repository, p.Segments, size(p.StoredBytes), lackText(p.Lacks))
		}
	}
	if waiting != nil {
		fmt.Fprintf(&b, "backlog of this host: %s: %s\n", d.Backlog.Status, waiting)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// lines are the rows of a timeline, ranges and gaps in their order.
func (l WALTimeline) lines() [][]string {
	timeline := strconv.FormatUint(uint64(l.Timeline), 10)
	var all [][]string
	for _, r := range l.Ranges {
		backups := "-"
		if len(r.Backups) > 0 {
			backups = strings.Join(r.Backups, ",")
		}
		all = append(all, []string{
			timeline, "archived", r.First, r.Last, strconv.FormatUint(r.Segments, 10), size(r.RawBytes), size(r.StoredBytes),
			r.FirstTime.Format(time.RFC3339), r.LastTime.Format(time.RFC3339), backups,
		})
	}
	for _, g := range l.Gaps {
		state := "missing"
		switch {
		case g.Dropped:
			state = "dropped"
		case g.Expired:
			state = "expired"
		}
		note := "-"
		if g.Open {
			note = "take a new backup"
		}
		all = append(all, []string{timeline, state, g.First, g.Last, strconv.FormatUint(g.Segments, 10), "-", "-", "-", "-", note})
	}
	slices.SortStableFunc(all, func(a, b []string) int { return strings.Compare(a[2], b[2]) })
	return all
}

func lackText(lacks []WALGap) string {
	if len(lacks) == 0 {
		return ""
	}
	var n uint64
	for _, g := range lacks {
		n += g.Segments
	}
	return fmt.Sprintf("; lacks %d that another has, the first is %s", n, lacks[0].First)
}
