package verify

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// What was found good counts until it is too old, for no more than was looked at,
// and a file that is not whole counts as none.
func TestSeen(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	const age = 30 * 24 * time.Hour
	open := func(now time.Time) *seen {
		t.Helper()
		s, err := openSeen(dir, "file:///a", now, age)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(now)
	for i := range 100 {
		s.add(identity("key", i), i%2 == 0, now)
	}
	s.add(identity("earlier"), false, now.Add(-age/2))
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		at   time.Time
		hash uint64
		deep bool
		want bool
	}{
		"read":                    {now, identity("key", 1), false, true},
		"read, but not opened":    {now, identity("key", 1), true, false},
		"opened":                  {now, identity("key", 2), true, true},
		"opened is read":          {now, identity("key", 2), false, true},
		"other bytes":             {now, identity("key", 200), false, false},
		"just not too old":        {now.Add(age - time.Second), identity("key", 1), false, true},
		"too old":                 {now.Add(age), identity("key", 1), false, false},
		"older, still counts":     {now, identity("earlier"), false, true},
		"older, does not":         {now.Add(age / 2), identity("earlier"), false, false},
		"of a clock that is late": {now.Add(-age), identity("key", 1), false, false},
	} {
		if _, got := open(c.at).fresh(c.hash, c.deep); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}

	// A run that asks for less leaves the others what they may ask for.
	hasty, err := openSeen(dir, "file:///a", now, 0)
	if err != nil {
		t.Fatal(err)
	}
	hasty.add(identity("key", 4), true, now)
	if _, ok := hasty.fresh(identity("key", 3), false); ok {
		t.Error("of no age at all something counts")
	}
	if err := hasty.save(); err != nil {
		t.Fatal(err)
	}
	if _, ok := open(now).fresh(identity("key", 3), false); !ok {
		t.Error("a run that asks for less has made it forgotten")
	}

	again := open(now)
	again.add(identity("key", 2), false, now)
	if _, ok := again.fresh(identity("key", 2), true); !ok {
		t.Error("a look that was not deep has made one forgotten that was")
	}

	s = open(now)
	s.forget(identity("key", 1))
	if _, ok := s.fresh(identity("key", 1), false); ok {
		t.Error("what was found bad counts as good")
	}
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	if _, ok := open(now).fresh(identity("key", 1), false); ok {
		t.Error("what was found bad counts as good in the next run")
	}
	if _, ok := open(now).fresh(identity("key", 3), false); !ok {
		t.Error("the others are forgotten")
	}
	if other, err := openSeen(dir, "file:///b", now, age); err != nil || len(other.known) != 0 {
		t.Errorf("another place knows %d (%v)", len(other.known), err)
	}

	body, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(body)
	flipped[len(body)/2] ^= 1
	for _, bad := range [][]byte{nil, body[:len(body)-1], body[:4], flipped} {
		if err := os.WriteFile(s.path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := open(now); len(got.known) != 0 {
			t.Errorf("of %d bytes that are not whole %d count", len(bad), len(got.known))
		}
	}
}
