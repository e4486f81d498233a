package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"agent/internal/crypto"
	"agent/internal/postgres"
)

// ObjectKind says what an object is, by its key (docs/format.md, "Objects and
// keys").
type ObjectKind string

// The kinds of objects.
const (
	KindRepository ObjectKind = "repository"
	KindCluster    ObjectKind = "cluster"
	KindWAL        ObjectKind = "wal" // segments, .partial and .backup files
	KindHistory    ObjectKind = "history"
	KindStream     ObjectKind = "stream"
	KindSummary    ObjectKind = "summary"
	KindGap        ObjectKind = "gap"
	KindHorizon    ObjectKind = "horizon"
	KindClaim      ObjectKind = "claim"
	KindBackup     ObjectKind = "backup" // backup.json
	KindPacks      ObjectKind = "packs"  // the list
	KindManifest   ObjectKind = "manifest"
	KindPack       ObjectKind = "pack"
	KindMark       ObjectKind = "mark"
	KindTomb       ObjectKind = "tomb"
	// KindReserved are keys that are set aside for what is not written yet.
	KindReserved ObjectKind = "reserved"
	KindProbe    ObjectKind = "probe"   // of agent check; means nothing
	KindUnknown  ObjectKind = "unknown" // no key of this format
)

// Object is a stored object as a listing tells it.
type Object struct {
	Key     string
	Kind    ObjectKind
	Cluster ClusterID  // 0 for one outside of any cluster
	Backup  BackupName // for what lies below backup/, claim/ and mark/
	Pack    uint32     // for a pack
	Size    int64      // stored bytes
	Stored  time.Time  // by the store's clock
}

// Objects lists everything in the place of that name, in the order of the keys.
func (r *Repository) Objects(ctx context.Context, place string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		p, err := r.named(place)
		if err != nil {
			yield(Object{}, err)
			return
		}
		for info, err := range p.Bucket.List(ctx, "", "") {
			if err != nil {
				yield(Object{}, fmt.Errorf("list repository: %w", err))
				return
			}
			o := DescribeKey(info.Key)
			o.Size, o.Stored = info.Size, info.ModTime
			if !yield(o, nil) {
				return
			}
		}
	}
}

// DescribeKey says what the key alone tells of an object.
func DescribeKey(key string) Object {
	o := Object{Key: key, Kind: KindUnknown}
	first, rest, _ := strings.Cut(key, "/")
	switch first {
	case repositoryKey:
		if rest == "" && key == repositoryKey {
			o.Kind = KindRepository
		}
	case "probe":
		o.Kind = KindProbe
	case "keys":
		o.Kind = KindReserved
	case strings.TrimSuffix(clusterRoot, "/"):
		name, below, _ := strings.Cut(rest, "/")
		id, err := strconv.ParseUint(name, 10, 64)
		if err == nil && ClusterID(id).prefix() == clusterRoot+name+"/" {
			o.Cluster = ClusterID(id)
			o.inCluster(below)
		}
	}
	return o
}

// The ends of keys below wal/, stream/, horizon/, backup/, claim/ and tomb/. They
// are compiled when they are first needed: each wal-push would pay for it.
var (
	upperHex8RE = compiled(`^[0-9A-F]{8}$`)
	partialRE   = compiled(`^[0-9A-F]{24}\.partial\.[0-9a-f]{16}$`)
	horizonRE   = compiled(`^([0-9A-F]{8})-([0-9A-F]{8})[0-9A-F]{16}\.json$`)
	packRE      = compiled(`^[0-9a-f]{8}$`)
	claimRE     = compiled(`^(0|[1-9][0-9]*|ended)$`)
	tombRE      = compiled(`^[0-9a-f]{16}/(0|[1-9][0-9]*|decided)$`)
)

// compiled is an expression that is compiled at its first use.
func compiled(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// inCluster reads a key below the cluster's prefix.
func (o *Object) inCluster(key string) {
	parts := strings.Split(key, "/")
	last := parts[len(parts)-1]
	switch parts[0] {
	case "cluster.json":
		o.is(KindCluster, len(parts) == 1)
	case "wal":
		f, ok := walObject(key)
		o.is(KindWAL, ok && len(parts) == 3 && f.Kind != postgres.WALHistory && inFolder(f, parts[1]) &&
			(f.Kind != postgres.WALPartial || partialRE().MatchString(last)))
	case "summary":
		f, ok := walObject(key)
		o.is(KindSummary, ok && len(parts) == 3 && f.Kind == postgres.WALSegment && inFolder(f, parts[1]))
	case "history":
		f, ok := walObject(key)
		o.is(KindHistory, ok && len(parts) == 2 && f.Kind == postgres.WALHistory)
	case "stream":
		o.is(KindStream, len(parts) == 3 && upperHex8RE().MatchString(parts[1]) && streamName(parts[1], last))
	case "gap":
		_, ok := parseDropped(last)
		o.is(KindGap, ok && len(parts) == 2)
	case "horizon":
		m := horizonRE().FindStringSubmatch(last)
		o.is(KindHorizon, len(parts) == 2 && m != nil && m[1] == m[2])
	case "claim":
		o.is(KindClaim, len(parts) == 3 && o.named(parts[1]) && claimRE().MatchString(last))
	case "backup":
		o.inBackup(parts[1:])
	case "mark":
		o.is(KindMark, len(parts) == 3 && o.named(parts[1]) && markNameRE().MatchString(last))
	case "tomb":
		o.is(KindTomb, len(parts) == 3 && tombRE().MatchString(parts[1]+"/"+last))
	case "audit", "drill", "dump":
		o.is(KindReserved, len(parts) > 1)
	}
}

func (o *Object) inBackup(parts []string) {
	if len(parts) < 2 || !o.named(parts[0]) {
		return
	}
	switch {
	case len(parts) == 2 && parts[1] == "backup.json":
		o.Kind = KindBackup
	case len(parts) == 2 && parts[1] == "packs":
		o.Kind = KindPacks
	case len(parts) == 2 && parts[1] == "manifest":
		o.Kind = KindManifest
	case len(parts) == 3 && parts[1] == "pack" && packRE().MatchString(parts[2]):
		n, err := strconv.ParseUint(parts[2], 16, 32)
		o.Pack = uint32(n)
		o.is(KindPack, err == nil)
	}
}

func (o *Object) is(kind ObjectKind, ok bool) {
	if ok {
		o.Kind = kind
	}
}

func (o *Object) named(s string) bool {
	name, err := ParseBackupName(s)
	o.Backup = name
	return err == nil
}

// inFolder reports whether a WAL file belongs into the folder of that name.
func inFolder(f postgres.WALFile, folder string) bool {
	return folder == fmt.Sprintf("%08X%08X", uint32(f.Timeline), f.Log)
}

func streamName(timeline, name string) bool {
	t, err := postgres.ParseTimelineHex(timeline)
	if err != nil {
		return false
	}
	_, ok := parseStreamName(t, name)
	return ok
}

// PlaceInfo describes a place for reports.
type PlaceInfo struct {
	Name, URL string
	ID        string // by which a host remembers it
	Required  bool
	Err       error // why it cannot be used
}

// Places describes all places, in the order of the configuration.
func (r *Repository) Places() []PlaceInfo {
	all := make([]PlaceInfo, len(r.places))
	for i, p := range r.places {
		all[i] = PlaceInfo{Name: p.Name, URL: p.String(), ID: p.ID(), Required: p.Required, Err: p.err()}
	}
	return all
}

// Only is the repository as if the place of that name were the only one: what is
// read then comes from there or not at all. It shares the connections, which
// stay those of r.
func (r *Repository) Only(name string) (*Repository, error) {
	i := slices.IndexFunc(r.places, func(p *place) bool { return p.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no repository %q", name)
	}
	p := &place{Place: r.places[i].Place}
	p.Required = true
	return &Repository{
		places: []*place{p}, strict: r.strict, keys: r.keys, codec: r.codec, pins: r.pins, debts: r.debts, spoolDir: r.spoolDir,
		log: r.log, now: r.now, version: r.version,
	}, r.places[i].err()
}

// ReadMarker reads repository.json, of the first place if there are several.
func (r *Repository) ReadMarker(ctx context.Context) (Marker, error) {
	return r.readMarker(ctx, r.places[0])
}

// maxHeader is enough for the header of any age file with some dozen recipients.
const maxHeader = 64 << 10

// PackHeader is how many bytes of a sealed pack come before what it holds; 0
// for one that is not sealed. It is the same for all packs of a kind that one
// backup made. One small request; no identity is needed.
func (r *Repository) PackHeader(ctx context.Context, cluster ClusterID, id PackID) (size int64, err error) {
	key := cluster.packKey(id.Backup, id.Number)
	err = r.read(ctx, key, expected, func(s source) error {
		body, _, err := s.get(ctx, key)
		if err != nil {
			return err
		}
		src := &storeReader{r: body}
		head, err := io.ReadAll(io.LimitReader(src, maxHeader))
		if err = errors.Join(err, body.Close()); err != nil {
			return fmt.Errorf("read the head of %s of %s: %w", key, s, err)
		}
		if !crypto.IsSealed(head) {
			size = 0
			return nil
		}
		if size, err = crypto.HeaderSize(head); err != nil {
			return s.damaged(err, key)
		}
		return nil
	})
	return size, missing(err, key, r.String())
}
