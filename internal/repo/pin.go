package repo

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"agent/internal/errs"
)

// Pins remember, in the state directory, which repository was seen at which
// URL. A nil *Pins remembers nothing.
type Pins struct{ dir string }

type pin struct {
	URL     string    `json:"url"`
	ID      string    `json:"id"`
	Checked time.Time `json:"checked"`
}

// NewPins keeps pins below stateDir, which is made when the first is written.
func NewPins(stateDir string) *Pins { return &Pins{dir: filepath.Join(stateDir, "pins")} }

func (p *Pins) path(url string) string {
	sum := sha256.Sum256([]byte(url))
	return filepath.Join(p.dir, fmt.Sprintf("%x.json", sum[:8]))
}

func (p *Pins) get(url string) (*pin, error) {
	if p == nil {
		return nil, nil
	}
	b, err := os.ReadFile(p.path(url))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, stateError(err)
	}
	var got pin
	if json.Unmarshal(b, &got) == nil && got.ID != "" {
		return &got, nil
	}
	// A torn pin is worth less than the repository's own word.
	return nil, nil
}

// set records what was seen. An unchanged pin whose look is recent is left
// alone, so that a push on a local folder costs no write here.
func (p *Pins) set(url, id string, now time.Time) error {
	if p == nil {
		return nil
	}
	old, err := p.get(url)
	if err != nil {
		return err
	}
	if old != nil && old.ID == id && now.Sub(old.Checked) < checkLease && !now.Before(old.Checked) {
		return nil
	}
	b, err := json.Marshal(pin{URL: url, ID: id, Checked: timestamp(now)})
	if err != nil {
		return fmt.Errorf("encode pin: %w", err)
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return stateError(err)
	}
	return replaceFile(p.path(url), append(b, '\n'))
}

// Pinned names the required places with the ids that this host has pinned; ok is
// false while one has none.
func (r *Repository) Pinned() (ids string, ok bool) {
	var all []string
	for _, p := range r.required() {
		pin, err := r.pins.get(p.ID())
		if err != nil || pin == nil {
			return "", false
		}
		all = append(all, p.ID()+" is "+pin.ID)
	}
	return strings.Join(all, "\n"), len(all) > 0
}

func stateError(err error) error { return errs.State(err, "use the state directory") }
