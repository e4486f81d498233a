package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// Debts remember, in the state directory, which objects a best-effort place
// has not got, and for how long it is not asked again. A nil *Debts remembers
// nothing. Several processes may use one at a time.
//
// A list that is lost costs nothing but time: agent repo sync can compare the
// places instead.
type Debts struct{ dir string }

// NewDebts keeps debts below stateDir, which is made when the first is noted.
func NewDebts(stateDir string) *Debts { return &Debts{dir: filepath.Join(stateDir, "debts")} }

const (
	// maxDebts bounds a list, in bytes; a longer one says that everything has
	// to be compared.
	maxDebts = 4 << 20
	// suspension is for how long a place that failed is not asked: as long as
	// it is away, archiving goes on at its usual speed.
	suspension = time.Minute
)

// errSuspended is that a place failed a moment ago.
var errSuspended = errors.New("it failed a moment ago and is not asked yet")

// Debt is what a place lacks.
type Debt struct {
	Keys []string // in the order in which they were noted
	// All says that there are more than could be listed.
	All   bool
	Since time.Time // when the oldest of them was noted
}

// Empty reports whether nothing is owed.
func (d Debt) Empty() bool { return len(d.Keys) == 0 && !d.All }

func (d *Debts) path(url, suffix string) string {
	sum := sha256.Sum256([]byte(url))
	return filepath.Join(d.dir, fmt.Sprintf("%x.%s", sum[:8], suffix))
}

// locked runs f while no other process reads or writes the debts.
func (d *Debts) locked(f func() error) (err error) {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return stateError(err)
	}
	lock := flock.New(filepath.Join(d.dir, "lock"))
	if err := lock.Lock(); err != nil {
		return stateError(err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	return f()
}

// debtLine is a line of a list.
type debtLine struct {
	Key   string    `json:"key"`
	Noted time.Time `json:"noted"`
}

// allLine says that there is more than the list can hold; room for some of them
// is kept.
const (
	allLine = `{"all":true}` + "\n"
	allRoom = 64
)

// add notes that the place at url lacks key, in one append whatever the length
// of the list: a push waits for it. It is durable when add returns.
func (d *Debts) add(url, key string, now time.Time) error {
	if d == nil {
		return nil
	}
	line, err := json.Marshal(debtLine{Key: key, Noted: timestamp(now)})
	if err != nil {
		return fmt.Errorf("encode debt: %w", err)
	}
	line = append(line, '\n')
	return d.locked(func() error {
		f, err := os.OpenFile(d.path(url, "list"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return stateError(err)
		}
		info, err := f.Stat()
		if err == nil && info.Size()+int64(len(line)) > maxDebts-allRoom {
			line = []byte(allLine)
		}
		if err == nil && info.Size()+int64(len(line)) <= maxDebts {
			_, err = f.Write(line)
		}
		return stateError(errors.Join(err, f.Sync(), f.Close()))
	})
}

// read gives each key once, in the order in which they were first noted.
func (d *Debts) read(url string) (Debt, error) {
	var debt Debt
	body, err := os.ReadFile(d.path(url, "list"))
	if errors.Is(err, fs.ErrNotExist) {
		return debt, nil
	}
	if err != nil {
		return debt, stateError(err)
	}
	seen := make(map[string]bool)
	for line := range bytes.Lines(body) {
		var one debtLine
		// A line that was torn by a crash was never promised to anybody; what
		// it was about is found by comparing.
		if json.Unmarshal(line, &one) != nil || one.Key == "" {
			debt.All = true
			continue
		}
		if seen[one.Key] {
			continue
		}
		seen[one.Key] = true
		debt.Keys = append(debt.Keys, one.Key)
		if debt.Since.IsZero() || one.Noted.Before(debt.Since) {
			debt.Since = one.Noted
		}
	}
	return debt, nil
}

// Owed is what the place at url lacks, as far as this host has noted.
func (d *Debts) Owed(url string) (Debt, error) {
	if d == nil {
		return Debt{}, nil
	}
	return d.read(url)
}

// Settle removes keys from the list, and everything if all is true.
func (d *Debts) Settle(url string, keys []string, all bool) error {
	if d == nil || len(keys) == 0 && !all {
		return nil
	}
	paid := make(map[string]bool, len(keys))
	for _, k := range keys {
		paid[k] = true
	}
	return d.locked(func() error {
		body, err := os.ReadFile(d.path(url, "list"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return stateError(err)
		}
		var left []byte
		for line := range bytes.Lines(body) {
			var one debtLine
			known := json.Unmarshal(line, &one) == nil && one.Key != ""
			if !paid[one.Key] && (known || !all) {
				left = append(left, line...)
			}
		}
		return replaceFile(d.path(url, "list"), left)
	})
}

// suspended is until when a place is left alone after a failure.
type suspended struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// suspend leaves the place at url alone for a while. That it cannot be noted
// only costs time.
func (d *Debts) suspend(url string, now time.Time, reason error) {
	if d == nil || errors.Is(reason, errSuspended) {
		return
	}
	body, err := json.Marshal(suspended{Until: timestamp(now.Add(suspension)), Reason: reason.Error()})
	if err == nil && os.MkdirAll(d.dir, 0o700) == nil {
		_ = os.WriteFile(d.path(url, "suspended"), body, 0o600)
	}
}

// Suspended is why the place with this ID is not asked at present, or nil.
func (d *Debts) Suspended(url string, now time.Time) error {
	if d == nil {
		return nil
	}
	body, err := os.ReadFile(d.path(url, "suspended"))
	var s suspended
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	if err != nil {
		s = suspended{} // there is none, or it was torn by a crash
	}
	if left := s.Until.Sub(now); left <= 0 || left > suspension {
		return nil // over, or the clock jumped
	}
	return fmt.Errorf("%w (%s): %s", errSuspended, s.Until.Format(time.TimeOnly), s.Reason)
}

// resume asks the place at url again from now on.
func (d *Debts) resume(url string) {
	if d != nil {
		_ = os.Remove(d.path(url, "suspended")) // it may not be there, and runs out by itself
	}
}

// pauseTime is for how long what a place owes is not worked off by itself after an
// attempt that could not bring everything: what is damaged stays so.
const pauseTime = 10 * time.Minute

// pause notes an attempt that left something behind.
func (d *Debts) pause(now time.Time) error {
	if d == nil {
		return nil
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return stateError(err)
	}
	path := filepath.Join(d.dir, "paused")
	err := os.WriteFile(path, nil, 0o600)
	return stateError(errors.Join(err, os.Chtimes(path, now, now)))
}

// paused reports whether the last attempt was not long ago.
func (d *Debts) paused(now time.Time) bool {
	if d == nil {
		return false
	}
	info, err := os.Stat(filepath.Join(d.dir, "paused"))
	if err != nil {
		return false
	}
	age := now.Sub(info.ModTime())
	return age >= 0 && age < pauseTime
}

// slow notes that the place at url could not be read a moment ago.
func (d *Debts) slow(url string, now time.Time) {
	if d == nil {
		return
	}
	body, err := json.Marshal(suspended{Until: timestamp(now.Add(suspension))})
	if err == nil && os.MkdirAll(d.dir, 0o700) == nil {
		_ = os.WriteFile(d.path(url, "slow"), body, 0o600) // it only saves time
	}
}

// wasSlow reports whether slow was called for the place at url a moment ago.
func (d *Debts) wasSlow(url string, now time.Time) bool {
	if d == nil {
		return false
	}
	body, err := os.ReadFile(d.path(url, "slow"))
	var s suspended
	if err != nil || json.Unmarshal(body, &s) != nil {
		return false
	}
	left := s.Until.Sub(now)
	return left > 0 && left <= suspension
}

// replaceFile writes a file of the state directory whole and durable, or
// removes it if there is nothing to write.
func replaceFile(path string, body []byte) error {
	if len(body) == 0 {
		return stateError(os.Remove(path))
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return stateError(err)
	}
	_, err = tmp.Write(body)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return stateError(errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}
