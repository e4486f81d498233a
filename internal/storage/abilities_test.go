package storage

import (
	"context"
	"errors"
	"iter"
	"slices"
	"testing"
	"time"
)

// leavings is a Cleaner over a list.
type leavings struct {
	left []Unfinished
	bad  string // the ID of one that is not discarded
	list error  // behind the list
}

func (l *leavings) Unfinished(context.Context, string) iter.Seq2[Unfinished, error] {
	return func(yield func(Unfinished, error) bool) {
		for _, u := range slices.Clone(l.left) {
			if !yield(u, nil) {
				return
			}
		}
		if l.list != nil {
			yield(Unfinished{}, l.list)
		}
	}
}

func (l *leavings) Discard(_ context.Context, u Unfinished) error {
	if u.ID == l.bad {
		return ErrPermission
	}
	l.left = slices.DeleteFunc(l.left, func(v Unfinished) bool { return v == u })
	return nil
}

func TestClean(t *testing.T) {
	now := time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)
	old, young := now.Add(-time.Second), now
	all := []Unfinished{{ID: "1", Since: old}, {ID: "2", Since: young}, {ID: "3", Since: old}, {ID: "4", Since: old.Add(-time.Hour)}}
	for _, tt := range []struct {
		c    leavings
		n    int
		err  error
		left []string
	}{
		{leavings{}, 3, nil, []string{"2"}},
		{leavings{bad: "3"}, 1, ErrPermission, []string{"2", "3", "4"}},
		{leavings{list: ErrUnavailable}, 3, ErrUnavailable, []string{"2"}},
	} {
		tt.c.left = slices.Clone(all)
		n, err := Clean(t.Context(), &tt.c, "", now)
		if n != tt.n || !errors.Is(err, tt.err) {
			t.Errorf("clean: %d, %v, want %d, %v", n, err, tt.n, tt.err)
		}
		var left []string
		for _, u := range tt.c.left {
			left = append(left, u.ID)
		}
		if !slices.Equal(left, tt.left) {
			t.Errorf("left: %q, want %q", left, tt.left)
		}
	}
}
