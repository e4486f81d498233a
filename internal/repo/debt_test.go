package repo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/storage"
)

// appendDebt writes to a list behind the back of Debts.
func appendDebt(t testing.TB, d *Debts, url, text string) {
	t.Helper()
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(d.path(url, "list"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// owed is what the place "u" owes.
func owed(t testing.TB, d *Debts) Debt {
	t.Helper()
	debt, err := d.Owed("u")
	if err != nil {
		t.Fatal(err)
	}
	return debt
}

func TestDebts(t *testing.T) {
	d := NewDebts(filepath.Join(t.TempDir(), "not", "yet"))
	if debt := owed(t, d); !debt.Empty() {
		t.Fatalf("%+v", debt)
	}
	for n, key := range []string{"a", "b", "a", "c"} {
		if err := d.add("u", key, testTime.Add(time.Duration(n)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.add("other", "x", testTime); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Debt{Keys: []string{"a", "b", "c"}, Since: testTime}, owed(t, d)); diff != "" {
		t.Fatal(diff)
	}
	if err := d.Settle("u", []string{"a", "unknown"}, false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Debt{Keys: []string{"b", "c"}, Since: testTime.Add(time.Hour)}, owed(t, d)); diff != "" {
		t.Fatal(diff)
	}
	// A line that was torn by a crash says that anything may be missing.
	appendDebt(t, d, "u", `{"key":"d","no`)
	if debt := owed(t, d); !debt.All || len(debt.Keys) != 2 {
		t.Fatalf("%+v", debt)
	}
	if err := d.Settle("u", []string{"b", "c"}, false); err != nil {
		t.Fatal(err)
	}
	if debt := owed(t, d); !debt.All || debt.Empty() {
		t.Fatalf("what was torn is forgotten: %+v", debt)
	}
	if err := d.Settle("u", nil, true); err != nil {
		t.Fatal(err)
	}
	if debt := owed(t, d); !debt.Empty() {
		t.Fatalf("%+v", debt)
	}
	for range 2 { // also when there is no list
		if err := d.Settle("other", []string{"x"}, true); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(d.dir, "*.list")); err != nil || len(left) != 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
	var none *Debts
	if err := errorsFirst(none.add("u", "a", testTime), none.Settle("u", nil, true), none.pause(testTime)); err != nil || none.paused(testTime) {
		t.Fatal(err)
	}
	bad := NewDebts("/dev/null")
	if err := bad.add("u", "a", testTime); err == nil {
		t.Fatal("a list that cannot be written was written")
	}
}

// A list does not grow for ever: then everything has to be compared.
func TestDebtsBounded(t *testing.T) {
	d := NewDebts(t.TempDir())
	var lines strings.Builder
	for n := 0; lines.Len() < maxDebts-600; n++ {
		fmt.Fprintf(&lines, `{"key":"%0400d","noted":"2026-11-20T10:15:30Z"}`+"\n", n)
	}
	appendDebt(t, d, "u", lines.String())
	if debt := owed(t, d); debt.All {
		t.Fatal("it is full already")
	}
	for _, key := range []string{strings.Repeat("k", 700), "next", "another"} {
		if err := d.add("u", key, testTime); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(d.path("u", "list"))
	if err != nil || info.Size() > maxDebts || !owed(t, d).All {
		t.Fatalf("%d bytes, %v", info.Size(), err)
	}
}

// Several processes note and settle at a time, and nothing is lost.
func TestDebtsTogether(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			d := NewDebts(dir)
			for i := range 10 {
				key := fmt.Sprintf("%d-%d", n, i)
				if err := d.add("u", key, testTime); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := d.Settle("u", []string{key}, false); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	if debt := owed(t, NewDebts(dir)); len(debt.Keys) != 40 || debt.All {
		t.Fatalf("%d debts, %v", len(debt.Keys), debt.All)
	}
}

func TestSuspension(t *testing.T) {
	d := NewDebts(t.TempDir())
	if err := d.Suspended("u", testTime); err != nil {
		t.Fatal(err)
	}
	d.suspend("u", testTime, storage.ErrUnavailable)
	err := d.Suspended("u", testTime.Add(suspension-time.Second))
	if !errors.Is(err, errSuspended) || !strings.Contains(err.Error(), storage.ErrUnavailable.Error()) {
		t.Fatalf("got %v", err)
	}
	// It is not made longer by itself.
	d.suspend("u", testTime.Add(suspension-time.Second), err)
	for _, at := range []time.Time{testTime.Add(suspension), testTime.Add(-time.Second)} {
		if err := d.Suspended("u", at); err != nil {
			t.Fatalf("at %s: %v", at, err)
		}
	}
	if err := d.Suspended("other", testTime); err != nil {
		t.Fatal(err)
	}
	d.resume("u")
	if err := d.Suspended("u", testTime); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.path("u", "suspended"), []byte(`{"until":"20`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Suspended("u", testTime); err != nil {
		t.Fatalf("a torn file: %v", err)
	}
	if d.paused(testTime) {
		t.Fatal("paused")
	}
	if err := d.pause(testTime); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[time.Duration]bool{0: true, pauseTime - time.Second: true, pauseTime: false, -time.Second: false} {
		if d.paused(testTime.Add(at)) != want {
			t.Errorf("%s later: %v", at, !want)
		}
	}
}
