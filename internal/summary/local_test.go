package summary

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestLocal(t *testing.T) {
	dir := t.TempDir()
	l := NewLocal(filepath.Join(dir, "summary"))
	const segment = "000000010000000000000007"
	if _, err := l.Get("1", segment); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing was put: %v", err)
	}
	for _, body := range []string{"first", "second"} {
		if err := l.Put("1", segment, []byte(body), time.Now()); err != nil {
			t.Fatal(err)
		}
		if got, err := l.Get("1", segment); err != nil || string(got) != body {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if _, err := l.Get("2", segment); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another cluster has it: %v", err)
	}
	// What is too old goes when a round number comes.
	now := time.Now().Add(localAge + time.Hour)
	if err := l.Put("1", "000000010000000000000101", nil, now); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Get("1", segment); err != nil {
		t.Error(err)
	}
	if err := l.Put("1", "000000010000000000000100", nil, now); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Get("1", segment); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "summary", "1", ".tmp-*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}
