package repo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// sweepBatch is how many objects are removed by one call: S3's most
// (DeleteObjects).
const sweepBatch = 1000

// Swept is what was removed, or would be.
type Swept struct {
	Objects, Bytes int64 // that are gone
	// Locked counts objects that are locked by what this place promises, and
	// were not asked for.
	Locked int64
	// Failed counts those that the store did not remove; Problems are the first.
	Failed   int64
	Problems []SyncProblem
	// Requests is how many deletions and listings a store that takes a thousand
	// at a time needs.
	Requests int64
}

// Sweep removes objects from one place, or with Dry only counts them. It is
// used by one goroutine.
type Sweep struct {
	Dry bool
	// Current is asked before each removal whether the delete may go on; nil:
	// always.
	Current func(context.Context) error

	repo    *Repository
	place   *place
	cluster ClusterID
	batch   []storage.Info
	swept   Swept
	remains map[string]bool // keys that were not removed, of the last flush
}

// NewSweep prepares to remove objects of a cluster from the place of that name.
func (r *Repository) NewSweep(place string, cluster ClusterID) (*Sweep, error) {
	p, err := r.named(place)
	return &Sweep{repo: r, place: p, cluster: cluster}, err
}

// Take returns what was removed since the last call.
func (s *Sweep) Take() Swept {
	swept := s.swept
	s.swept = Swept{}
	return swept
}

// locked reports whether the object is locked by what is promised for this
// place. Stores would hide it behind a marker instead of refusing.
func (s *Sweep) locked(info storage.Info) bool {
	return s.place.Immutable != nil && s.repo.now().Before(s.place.Immutable.Until(info.ModTime))
}

// remove takes an object into the batch.
func (s *Sweep) remove(ctx context.Context, info storage.Info) error {
	if s.locked(info) {
		s.swept.Locked++
		return nil
	}
	s.batch = append(s.batch, info)
	if len(s.batch) >= sweepBatch {
		return s.flush(ctx)
	}
	return nil
}

// flush removes the batch. Objects that the store keeps are counted; the error
// is of what makes going on useless.
func (s *Sweep) flush(ctx context.Context) error {
	if len(s.batch) == 0 {
		return nil
	}
	batch := s.batch
	s.batch = s.batch[:0]
	s.swept.Requests++
	var refused map[string]error
	if !s.Dry {
		if s.Current != nil {
			if err := s.Current(ctx); err != nil {
				return err
			}
		}
		keys := make([]string, len(batch))
		for i, info := range batch {
			keys[i] = info.Key
		}
		var err error
		if refused, err = perKey(s.place.Bucket.Delete(ctx, keys...)); err != nil {
			return fmt.Errorf("remove objects from repository %s: %w", s.place.Name, err)
		}
	}
	for _, info := range batch {
		if err, ok := refused[info.Key]; ok {
			s.swept.Failed++
			if len(s.swept.Problems) < maxProblems {
				s.swept.Problems = append(s.swept.Problems, SyncProblem{Key: info.Key, Err: err})
			}
			s.remains[info.Key] = true
			continue
		}
		s.swept.Objects++
		s.swept.Bytes += info.Size
	}
	return ctx.Err()
}

// perKey takes the error of a Delete apart: one for each key that remains.
// Anything else is of the whole.
func perKey(err error) (map[string]error, error) {
	if err == nil {
		return nil, nil
	}
	all := make(map[string]error)
	var whole error
	var walk func(error)
	walk = func(err error) {
		var one *storage.Error
		var joined interface {
			error
			Unwrap() []error
		}
		keyed := errors.As(err, &one) && one.Key != ""
		switch {
		case errors.As(err, &joined) && !(keyed && errors.Is(one, joined)): // those of one key have causes of their own
			for _, e := range joined.Unwrap() {
				walk(e)
			}
		case keyed:
			all[one.Key] = err
		default:
			whole = first(whole, err)
		}
	}
	walk(err)
	return all, whole
}

func (s *Sweep) begin() {
	s.batch, s.remains = s.batch[:0], make(map[string]bool)
}

// list counts the requests of a listing.
func (s *Sweep) list(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		n := 0
		defer func() { s.swept.Requests += int64(n/sweepBatch) + 1 }()
		for info, err := range s.place.Bucket.List(ctx, prefix, "") {
			if err != nil {
				err = fmt.Errorf("list objects of repository %s: %w", s.place.Name, err)
			}
			n++
			if !yield(info, err) || err != nil {
				return
			}
		}
	}
}

// Hide removes backup.json of the backups, after which they do not exist, and
// says which are gone: nothing else of the others may be removed.
func (s *Sweep) Hide(ctx context.Context, names []BackupName) (gone []BackupName, err error) {
	s.begin()
	infos, err := s.visible(ctx, names)
	if err != nil {
		return nil, err
	}
	locked := make(map[BackupName]bool)
	for i, name := range names {
		if infos[i].Key == "" {
			continue
		}
		if s.locked(infos[i]) {
			locked[name] = true
		}
		if err := s.remove(ctx, infos[i]); err != nil {
			return nil, err
		}
	}
	if err := s.flush(ctx); err != nil {
		return nil, err
	}
	for _, name := range names {
		if !s.remains[s.cluster.backupKey(name)] && !locked[name] {
			gone = append(gone, name)
		}
	}
	return gone, nil
}

// visible looks at backup.json of each backup; the Key is empty where there is
// none.
func (s *Sweep) visible(ctx context.Context, names []BackupName) ([]storage.Info, error) {
	s.swept.Requests += int64(len(names))
	infos := make([]storage.Info, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(loads)
	for i, name := range names {
		g.Go(func() error {
			key := s.cluster.backupKey(name)
			info, err := s.place.Bucket.Stat(gctx, key)
			if errors.Is(err, storage.ErrNotExist) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("look at backup %s in repository %s: %w", name, s.place.Name, err)
			}
			infos[i] = info
			infos[i].Key = key
			return nil
		})
	}
	return infos, g.Wait()
}

// Clear removes what is left of a backup that does not exist: its lists, and the
// packs that keep does not want. When nothing of it is left, the marks go, too.
func (s *Sweep) Clear(ctx context.Context, name BackupName, keep func(pack uint32) bool) error {
	s.begin()
	dir, packs, locked := s.cluster.backupDir(name), s.cluster.packPrefix(name), s.swept.Locked
	kept := false
	for info, err := range s.list(ctx, dir) {
		if err != nil {
			return err
		}
		number, isPack := parsePack(info.Key, packs)
		switch {
		case info.Key == s.cluster.backupKey(name) && !s.Dry:
			return nil // it was made, or brought, a moment ago
		case info.Key == s.cluster.backupKey(name):
		case isPack && keep(number):
			kept = true
		case isPack || info.Key == s.cluster.packsKey(name) || info.Key == s.cluster.manifestKey(name):
			if err := s.remove(ctx, info); err != nil {
				return err
			}
		default:
			kept = true // of a later version
		}
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	if kept || len(s.remains) > 0 || s.swept.Locked > locked {
		return nil
	}
	return s.folder(ctx, s.cluster.markPrefix()+string(name)+"/")
}

// folder removes all that lies below a prefix.
func (s *Sweep) folder(ctx context.Context, prefix string) error {
	for info, err := range s.list(ctx, prefix) {
		if err != nil {
			return err
		}
		if err := s.remove(ctx, info); err != nil {
			return err
		}
	}
	return s.flush(ctx)
}

func parsePack(key, prefix string) (uint32, bool) {
	digits, ok := strings.CutPrefix(key, prefix)
	n, err := strconv.ParseUint(digits, 16, 32)
	return uint32(n), ok && err == nil && len(digits) == 8
}

// WALVerdict says which WAL is not wanted any more.
type WALVerdict interface {
	// Drops reports whether a segment goes; stored is when the store took it.
	Drops(seg postgres.Segment, stored time.Time) bool
	// End is the number of the segment of a timeline from which on none goes.
	End(t postgres.Timeline) uint64
}

// WAL removes the segments of some timelines that the verdict drops, with their
// summaries and what belongs to them; ranges of unfinished segments that are
// whole here, or go; and records of dropped rows of which no segment is wanted.
// Timeline histories stay for ever.
func (s *Sweep) WAL(ctx context.Context, timelines []postgres.Timeline, size postgres.SegmentSize, v WALVerdict) error {
	s.begin()
	for _, t := range timelines {
		for _, prefix := range []string{s.cluster.timelinePrefix(t), s.cluster.prefix() + "summary/" + t.String()} {
			if err := s.segments(ctx, prefix, size, v); err != nil {
				return err
			}
		}
		if err := s.streamed(ctx, t, size, v); err != nil {
			return err
		}
	}
	dropped, err := droppedIn(ctx, s.place, s.cluster, 0)
	if err != nil {
		return err
	}
	for _, d := range dropped {
		first, err := postgres.ParseSegment(d.First, size)
		last, lerr := postgres.ParseSegment(d.Last, size)
		if err != nil || lerr != nil || !v.Drops(first, d.At) || !v.Drops(last, d.At) {
			continue
		}
		if err := s.remove(ctx, storage.Info{Key: s.cluster.gapKey(first, last, size), ModTime: d.At}); err != nil {
			return err
		}
	}
	return s.flush(ctx)
}

func (s *Sweep) segments(ctx context.Context, prefix string, size postgres.SegmentSize, v WALVerdict) error {
	for info, err := range s.list(ctx, prefix) {
		if err != nil {
			return err
		}
		seg, ok := segmentOf(info.Key, size)
		if !ok {
			continue
		}
		if seg.Number >= v.End(seg.Timeline) {
			break
		}
		if !v.Drops(seg, info.ModTime) {
			continue
		}
		if err := s.remove(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// streamed removes ranges of unfinished segments. One whose segment is whole
// waits a day: a receiver that goes on from it looks at it.
func (s *Sweep) streamed(ctx context.Context, t postgres.Timeline, size postgres.SegmentSize, v WALVerdict) error {
	var seen postgres.Segment
	var whole bool
	for info, err := range s.list(ctx, s.cluster.streamPrefix(t)) {
		if err != nil {
			return err
		}
		g, ok := parseStreamName(t, strings.TrimPrefix(info.Key, s.cluster.streamPrefix(t)))
		if !ok {
			continue
		}
		seg := postgres.SegmentOf(t, g.Start, size)
		drop := v.Drops(seg, info.ModTime)
		if !drop && s.repo.now().Sub(info.ModTime) > GarbageAge {
			if seg != seen {
				if whole, err = s.holds(ctx, seg, size); err != nil {
					return err
				}
				seen = seg
			}
			drop = whole
		}
		if drop {
			if err := s.remove(ctx, info); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Sweep) holds(ctx context.Context, seg postgres.Segment, size postgres.SegmentSize) (bool, error) {
	f, err := postgres.ParseWALFile(seg.Name(size))
	if err != nil {
		return false, err
	}
	_, err = s.place.Bucket.Stat(ctx, s.cluster.WALKey(f, [32]byte{}))
	s.swept.Requests++
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// DeadClaims removes claims that ended, or were not renewed since a time.
func (s *Sweep) DeadClaims(ctx context.Context, before time.Time) error {
	s.begin()
	claims, err := claimsIn(ctx, s.place, s.cluster)
	if err != nil {
		return err
	}
	for _, c := range claims {
		if !c.newest.ModTime.Before(before) {
			continue
		}
		for _, info := range c.objects {
			if err := s.remove(ctx, info); err != nil {
				return err
			}
		}
	}
	return s.flush(ctx)
}

// OldMarks removes marks of verifications that a later one of the same backup
// stands for.
func (s *Sweep) OldMarks(ctx context.Context) error {
	s.begin()
	var last storage.Info
	var of BackupName
	for info, err := range s.list(ctx, s.cluster.markPrefix()) {
		if err != nil {
			return err
		}
		m, ok := s.cluster.parseMark(info.Key)
		if !ok || m.kind != MarkVerified {
			continue
		}
		if m.backup == of { // keys come in the order of time
			if err := s.remove(ctx, last); err != nil {
				return err
			}
		}
		last, of = info, m.backup
	}
	return s.flush(ctx)
}

// Unfinished discards what Puts of the cluster's objects that were killed before a
// time have left.
func (s *Sweep) Unfinished(ctx context.Context, before time.Time) error {
	c, ok := storage.As[storage.Cleaner](s.place.Bucket)
	if !ok {
		return nil
	}
	s.swept.Requests++
	for u, err := range c.Unfinished(ctx, s.cluster.prefix()) {
		if errors.Is(err, storage.ErrUnsupported) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list unfinished uploads of repository %s: %w", s.place.Name, err)
		}
		if !u.Since.Before(before) {
			continue
		}
		s.swept.Requests++
		if !s.Dry {
			err = c.Discard(ctx, u)
		}
		if err != nil {
			s.swept.Failed++
			if len(s.swept.Problems) < maxProblems {
				s.swept.Problems = append(s.swept.Problems, SyncProblem{Key: u.Key, Err: err})
			}
			continue
		}
		s.swept.Objects++
		s.swept.Bytes += u.Size
	}
	return ctx.Err()
}

// Stale reports whether all that a place has of a backup which does not exist
// there was stored before a time, by the store's clock.
func (s *Sweep) Stale(ctx context.Context, name BackupName, before time.Time) (bool, error) {
	for info, err := range s.list(ctx, s.cluster.backupDir(name)) {
		if err != nil || info.Key == s.cluster.backupKey(name) || !info.ModTime.Before(before) {
			return false, err
		}
	}
	return true, nil
}
