package crypto

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"filippo.io/age"
	"golang.org/x/sync/singleflight"

	"agent/internal/errs"
)

// Sources say where identities come from; all that are given count.
type Sources struct {
	File    string // path of a file with identities
	Text    string // the identities themselves, from the environment; secret
	Command string // run with sh -c, prints identities
}

func (s Sources) empty() bool {
	return s.File == "" && strings.TrimSpace(s.Text) == "" && s.Command == ""
}

const identityHint = "Give the secret key with AGENT_IDENTITY_FILE (identity_file) or AGENT_IDENTITY_COMMAND (identity_command)."

// Identities open sealed objects. They are loaded at first use: a host that
// only archives never needs them. Loading that failed is tried again at the
// next use. All methods are safe for concurrent use and for a nil receiver,
// which has no identities.
type Identities struct {
	sources Sources
	load    func() ([]age.Identity, []string, error)
	once    singleflight.Group // concurrent first users share one attempt

	mu       sync.Mutex
	loaded   []age.Identity
	warnings []string
}

// NewIdentities prepares identities and reads nothing yet. A command of the
// sources is stopped when ctx is done.
func NewIdentities(ctx context.Context, s Sources) *Identities {
	return &Identities{sources: s, load: func() ([]age.Identity, []string, error) { return loadSources(ctx, s) }}
}

// Given says whether there is any source of identities, without using it.
func (i *Identities) Given() bool { return i != nil && !i.sources.empty() }

// Load loads the identities now, so that a mistake shows before the work
// begins, and returns warnings, for example about a file that others can
// read. Errors are of kind errs.Identity and never hold secrets.
func (i *Identities) Load() (warnings []string, err error) {
	if _, err := i.get(); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.warnings, nil
}

func (i *Identities) get() ([]age.Identity, error) {
	if !i.Given() {
		return nil, errs.New(errs.Identity, identityHint, "opening sealed objects needs an age identity, and none is given")
	}
	if ids := i.cached(); ids != nil {
		return ids, nil
	}
	_, err, _ := i.once.Do("", func() (any, error) {
		if i.cached() != nil {
			return nil, nil
		}
		ids, warnings, err := i.load()
		if err != nil {
			return nil, err
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		i.loaded, i.warnings = ids, warnings
		return nil, nil
	})
	return i.cached(), err
}

func (i *Identities) cached() []age.Identity {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.loaded
}

// loadSources reads every source that is given.
func loadSources(ctx context.Context, s Sources) (ids []age.Identity, warnings []string, err error) {
	add := func(where string, text []byte) error {
		found, err := parseIdentities(where, text)
		ids = append(ids, found...)
		return err
	}
	if s.File != "" {
		text, warning, err := readIdentityFile(s.File)
		if err != nil {
			return nil, nil, err
		}
		if warning != "" {
			warnings = append(warnings, warning)
		}
		if err := add("identity file "+s.File, text); err != nil {
			return nil, nil, err
		}
	}
	if strings.TrimSpace(s.Text) != "" {
		if err := add("AGENT_IDENTITY", []byte(s.Text)); err != nil {
			return nil, nil, err
		}
	}
	if s.Command != "" {
		text, err := runIdentityCommand(ctx, s.Command)
		if err != nil {
			return nil, nil, err
		}
		if err := add("the output of the identity command", text); err != nil {
			return nil, nil, err
		}
	}
	return ids, warnings, nil
}

// readIdentityFile also warns if others could read or change the file.
func readIdentityFile(path string) (text []byte, warning string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", errs.Wrap(err, errs.Identity, identityHint, "open identity file")
	}
	text, err = io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(text) > maxKeyFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxKeyFile)
	}
	info, serr := f.Stat()
	if err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, "", errs.Wrap(err, errs.Identity, identityHint, "read identity file")
	}
	// Group read is how Kubernetes hands secrets to a pod; more is too much.
	if mode := info.Mode(); mode.IsRegular() && mode.Perm()&0o027 != 0 {
		warning = fmt.Sprintf("identity file %s has mode %04o: other users can read or change it; run chmod 600 on it",
			path, mode.Perm())
	}
	return text, warning, nil
}
