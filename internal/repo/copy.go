package repo

import (
	"context"
	"errors"

	"agent/internal/errs"
)

// Ensure makes the repository in the place with this name if it has none, with
// an id of its own, and pins it. A place that this host knows as a repository
// and that is gone is refused, like one that cannot be asked.
func (r *Repository) Ensure(ctx context.Context, name string) (made bool, err error) {
	for _, p := range r.places {
		if p.Name != name {
			continue
		}
		if p.Bucket == nil {
			return false, p.Err
		}
		err := r.check(ctx, p)
		if err == nil || errs.KindOf(err) != errs.NotInitialised || errors.Is(err, ErrGone) {
			return false, err
		}
		_, err = r.init(ctx, p)
		return err == nil, err
	}
	return false, errs.New(errs.Usage, "", "there is no repository %q", name)
}

// Copy brings everything, or one backup, from one place to another, which is
// made if it is no repository yet. Both are places of this handle. It can be
// called again and goes on where it was cut off. It verifies, and fails, as Sync
// does.
func (r *Repository) Copy(ctx context.Context, to string, o SyncOptions) (SyncResult, error) {
	if !o.DryRun {
		if _, err := r.Ensure(ctx, to); err != nil {
			return SyncResult{Name: to}, err
		}
	}
	o.Targets, o.Pending = []string{to}, false
	results, err := r.Sync(ctx, o)
	if len(results) == 0 {
		return SyncResult{Name: to}, err
	}
	return results[0], err
}
