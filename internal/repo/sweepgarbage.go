package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"agent/internal/storage"
)

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
