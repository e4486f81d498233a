package repo

import (
	"testing"
	"time"

	"agent/internal/storage"
)

// A pack must stay locked for as long as a backup that borrows it now is promised
// to be kept, in the place that promises most.
func TestOutlived(t *testing.T) {
	const day = 24 * time.Hour
	locking := func(days int) Place {
		return Place{Name: "locked", Bucket: newMemory(), Required: true, Immutable: &Immutable{Mode: storage.Compliance, For: time.Duration(days) * day, FullEvery: 7 * day}}
	}
	plain := Place{Name: "plain", Bucket: newMemory()}
	for what, test := range map[string]struct {
		places []Place
		locked time.Time
		want   bool
	}{
		"nothing is locked":           {[]Place{plain}, time.Time{}, false},
		"locked at the chain's start": {[]Place{plain, locking(30)}, testTime.Add(-7 * day).Add(39 * day), false},
		"older than any chain":        {[]Place{locking(30)}, testTime.Add(-9 * day).Add(39 * day), true},
		"made before there were any":  {[]Place{locking(30)}, time.Time{}, true},
		"another place promises more": {[]Place{locking(30), locking(90)}, testTime.Add(39 * day), true},
	} {
		r := New(test.places, Options{Now: func() time.Time { return testTime }})
		got := r.Outlived(map[PackID]Pack{{testName, 3}: {Number: 3, LockedUntil: test.locked}})
		if (got != "") != test.want {
			t.Errorf("%s: %q", what, got)
		}
	}
}
