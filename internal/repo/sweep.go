package repo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

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
