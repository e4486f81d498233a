package repo

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"agent/internal/storage"
)

// TestPerKey takes errors of a Delete apart, whose causes are of several errors
// themselves.
func TestPerKey(t *testing.T) {
	of := func(key string) error {
		return &storage.Error{Op: "delete", Key: key, Err: fmt.Errorf("%w: %w", storage.ErrPermission, errors.New("by the store"))}
	}
	broken := errors.New("connection refused")
	for name, c := range map[string]struct {
		err   error
		keys  []string
		whole bool
	}{
		"nothing":  {},
		"one":      {err: of("a"), keys: []string{"a"}},
		"two":      {err: errors.Join(of("a"), of("b")), keys: []string{"a", "b"}},
		"wrapped":  {err: fmt.Errorf("delete: %w", errors.Join(of("a"), fmt.Errorf("again: %w", of("b")))), keys: []string{"a", "b"}},
		"whole":    {err: broken, whole: true},
		"no key":   {err: of(""), whole: true},
		"of both":  {err: errors.Join(of("a"), broken), keys: []string{"a"}, whole: true},
		"in depth": {err: errors.Join(errors.Join(of("a")), errors.Join(of("b"), of("c"))), keys: []string{"a", "b", "c"}},
	} {
		all, whole := perKey(c.err)
		if got := slices.Sorted(maps.Keys(all)); !slices.Equal(got, c.keys) || (whole != nil) != c.whole {
			t.Errorf("%s: %q, %v", name, got, whole)
		}
	}
}
