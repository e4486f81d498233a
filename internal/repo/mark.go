package repo

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/errs"
	"agent/internal/storage"
)

// What is learnt of a backup after it was made is a mark: an object of its own,
// created once. Its key tells of what kind it is and when it was made, so that a
// listing says which have been superseded.

// MarkKind says what a mark tells.
type MarkKind string

// The kinds of marks.
const (
	MarkKeep     MarkKind = "keep"     // no policy deletes the backup
	MarkRelease  MarkKind = "release"  // a policy may again
	MarkNote     MarkKind = "note"     // a key and a value of the user's
	MarkVerified MarkKind = "verified" // it was read and is what was stored
)

// Mark is the content of a mark object.
type Mark struct {
	Format int        `json:"format"`
	Backup BackupName `json:"backup"`
	Kind   MarkKind   `json:"kind"`
	Time   time.Time  `json:"time"`
	Host   string     `json:"host"`
	Agent  string     `json:"agent"`
	// Until is when a keep ends by itself; zero: never.
	Until time.Time `json:"until,omitzero"`
	// Key and Value are of a note; an empty value takes the note away.
	Key   string `json:"key,omitempty"`
	Value string `json:"value,omitempty"`
	// Verified says how a backup was verified.
	Verified *Verification `json:"verified,omitempty"`
}

// Verification says what was looked at.
type Verification struct {
	Deep     bool  `json:"deep"`      // frames were opened and pages checked
	WAL      bool  `json:"wal"`       // with the WAL from start to stop
	Objects  int64 `json:"objects"`   // that were read
	Bytes    int64 `json:"bytes"`     // stored, of these
	BadPages int64 `json:"bad_pages"` // pages that were damaged already when the backup was made
}

// Marks are what counts of the marks of one backup.
type Marks struct {
	Keep     *Mark             // nil: it is not kept by hand, or was released since
	Notes    map[string]string // without those that were taken away
	Verified *Mark             // the last of its kind
	// Unread is why some mark could not be read: what it says is not known.
	Unread error
}

// Kept reports whether no policy may delete the backup: it is marked so, or it
// is not known whether it is.
func (m Marks) Kept(now time.Time) bool {
	return m.Unread != nil || m.Keep != nil && (m.Keep.Until.IsZero() || now.Before(m.Keep.Until))
}

func (c ClusterID) markPrefix() string { return c.prefix() + "mark/" }

// markTime writes a time so that names sort by it.
const markTime = "20060102T150405.000Z"

var markNameRE = compiled(`^([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)-([a-z]+)-[a-z2-7]{6}\.json$`)

// marked is a mark as its key tells it.
type marked struct {
	backup BackupName
	kind   MarkKind
	at     time.Time
	key    string
}

func (c ClusterID) parseMark(key string) (marked, bool) {
	dir, file, _ := strings.Cut(strings.TrimPrefix(key, c.markPrefix()), "/")
	name, err := ParseBackupName(dir)
	parts := markNameRE().FindStringSubmatch(file)
	if err != nil || parts == nil {
		return marked{}, false
	}
	at, err := time.Parse(markTime, parts[1])
	return marked{backup: name, kind: MarkKind(parts[2]), at: at, key: key}, err == nil
}

// markedIn lists the marks of a place, by key. An empty name is all backups.
func markedIn(ctx context.Context, p *place, cluster ClusterID, name BackupName) ([]marked, error) {
	prefix := cluster.markPrefix()
	if name != "" {
		prefix += string(name) + "/"
	}
	var all []marked
	for info, err := range p.Bucket.List(ctx, prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list marks: %w", err)
		}
		if m, ok := cluster.parseMark(info.Key); ok {
			all = append(all, m)
		}
	}
	return all, nil
}

// PutMark stores a mark of a backup. It gets a later time than those that the
// backup has, whatever the clock says, so that it is the one that counts. It is
// durable in every required place when PutMark returns.
func (r *Repository) PutMark(ctx context.Context, cluster ClusterID, m Mark) error {
	at := timestamp(r.now())
	err := r.anywhere(func(p *place) error {
		there, err := markedIn(ctx, p, cluster, m.Backup)
		for _, o := range there {
			if !at.After(o.at) {
				at = o.at.Add(time.Millisecond)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	m.Format, m.Time, m.Agent = Format, at, r.version
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode mark: %w", err)
	}
	if len(body) >= maxMarker {
		return errs.New(errs.Usage, "Make the note shorter.", "a mark of %d bytes is too long", len(body))
	}
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("read random name: %w", err)
	}
	key := fmt.Sprintf("%s%s/%s-%s-%s.json", cluster.markPrefix(), m.Backup, at.Format(markTime), m.Kind,
		strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:6])
	if _, err := r.putOwned(ctx, key, key, storage.Bytes(append(body, '\n'))); err != nil {
		return fmt.Errorf("store mark: %w", err)
	}
	return nil
}

// Marks reads the marks of a cluster's backups that count: one listing of each
// place and a small GET for each of these. It fails if a required place does not
// answer, since a mark that is only there may be the one that keeps a backup.
func (r *Repository) Marks(ctx context.Context, cluster ClusterID) (map[BackupName]Marks, error) {
	return r.marks(ctx, cluster, r.surely)
}

// MarksSeen is Marks for showing them: those of the places that answer.
func (r *Repository) MarksSeen(ctx context.Context, cluster ClusterID) (map[BackupName]Marks, error) {
	return r.marks(ctx, cluster, r.anywhere)
}

func (r *Repository) marks(ctx context.Context, cluster ClusterID, ask func(func(*place) error) error) (map[BackupName]Marks, error) {
	seen := make(map[string]marked)
	err := ask(func(p *place) error {
		there, err := markedIn(ctx, p, cluster, "")
		for _, m := range there {
			seen[m.key] = m
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	wanted := counting(seen)
	read, failed := make([]*Mark, len(wanted)), make([]error, len(wanted))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(loads)
	for i, m := range wanted {
		g.Go(func() error {
			read[i], failed[i] = r.readMark(gctx, m)
			return context.Cause(gctx)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := make(map[BackupName]Marks)
	for i, m := range wanted {
		of := all[m.backup]
		if failed[i] != nil {
			of.Unread = errors.Join(of.Unread, failed[i])
		} else if read[i] != nil {
			of.take(read[i])
		}
		all[m.backup] = of
	}
	return all, nil
}

// counting are the marks that have to be read, in the order of their keys: of
// each backup all notes and the newest of the other kinds. A release counts by
// its key alone, and is not among them.
func counting(seen map[string]marked) []marked {
	sorted := slices.SortedFunc(maps.Values(seen), func(a, b marked) int { return cmp.Compare(a.key, b.key) })
	type aspect struct {
		backup BackupName
		kind   MarkKind
	}
	newest := make(map[aspect]marked)
	for _, m := range sorted {
		newest[aspect{m.backup, m.kind}] = m
	}
	return slices.DeleteFunc(sorted, func(m marked) bool {
		switch m.kind {
		case MarkNote:
			return false
		case MarkKeep:
			return newest[aspect{m.backup, MarkKeep}].key != m.key || newest[aspect{m.backup, MarkRelease}].at.After(m.at)
		case MarkVerified:
			return newest[aspect{m.backup, MarkVerified}].key != m.key
		default:
			return true // a release, or of a later version
		}
	})
}

// take adds a mark that is later than those before.
func (m *Marks) take(mark *Mark) {
	switch mark.Kind {
	case MarkKeep:
		m.Keep = mark
	case MarkVerified:
		m.Verified = mark
	case MarkNote:
		if mark.Value == "" {
			delete(m.Notes, mark.Key)
			return
		}
		if m.Notes == nil {
			m.Notes = make(map[string]string)
		}
		m.Notes[mark.Key] = mark.Value
	}
}

// readMark gives nil for a mark that was removed meanwhile.
func (r *Repository) readMark(ctx context.Context, m marked) (*Mark, error) {
	var mark *Mark
	err := r.read(ctx, m.key, expected, func(s source) error {
		body, err := s.readAll(ctx, m.key, maxMarker)
		if err != nil {
			return err
		}
		mark = new(Mark)
		if err := json.Unmarshal(body, mark); err != nil {
			return s.damaged(fmt.Errorf("decode: %w", err), m.key)
		}
		if mark.Backup != m.backup || mark.Kind != m.kind {
			return s.damaged(fmt.Errorf("it is a mark %q of backup %s", mark.Kind, mark.Backup), m.key)
		}
		return nil
	})
	if errors.Is(err, storage.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read mark: %w", err)
	}
	return mark, nil
}
