package check

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/host"
)

// The free space that is told, in bytes.
const (
	spaceWarning = 1 << 30
	spaceFailed  = 100 << 20
)

// system is what tests replace.
type system struct {
	statfs func(dir string) (fileSystem, error)
	// answer is how long the server may take to answer.
	answer time.Duration
}

// fileSystem is what is asked of one.
type fileSystem struct {
	free   int64 // bytes that this user may use
	memory bool  // it is gone after a restart
}

func linux() system { return system{statfs: statfs, answer: serverLimit} }

func statfs(dir string) (fileSystem, error) {
	var s unix.Statfs_t
	for {
		err := unix.Statfs(dir, &s)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fileSystem{}, fmt.Errorf("ask for the free space of %s: %w", dir, err)
		}
		return fileSystem{
			free:   int64(s.Bavail) * s.Bsize,
			memory: s.Type == unix.TMPFS_MAGIC || s.Type == unix.RAMFS_MAGIC,
		}, nil
	}
}

// room judges free space.
func room(l *list, n Name, place string, free int64, hint string) {
	facts := Facts{FreeBytes: free}
	switch {
	case free < spaceFailed:
		l.bad(n, place, errs.NoSpace, facts, hint, "only %s are free", bytesText(free))
	case free < spaceWarning:
		l.warn(n, place, facts, hint, "only %s are free", bytesText(free))
	default:
		l.ok(n, place, facts, "%s are free", bytesText(free))
	}
}

// config says which file was read and what is odd about it.
func (r *run) config(l *list) {
	text, facts := "no configuration file; settings are from the environment and flags", Facts{}
	if r.ConfigFile != "" {
		text, facts = r.ConfigFile+" can be used", Facts{File: r.ConfigFile}
	}
	if len(r.Warnings) == 0 {
		l.ok(Config, "", facts, "%s", text)
	}
	for _, w := range r.Warnings {
		l.warn(Config, "", facts, "agent config show tells which settings are used and where each is from.", "%s", oneLine(w))
	}
}

// keys looks at who may open what is stored.
func (r *run) keys(l *list) {
	counts := map[string]int{}
	for _, class := range []struct {
		name   string
		values []string
	}{{"data", r.Keys.Data}, {"wal", r.Keys.WAL}, {"meta", r.Keys.Meta}} {
		recipients, err := crypto.ParseRecipients(class.values)
		if err != nil {
			l.fail(Recipients, "", fmt.Errorf("recipients for %s: %w", class.name, err), errs.Config, "")
			r.ownIdentity(l)
			return
		}
		counts[class.name] = len(recipients.Strings())
	}
	if counts["data"] == 0 || counts["wal"] == 0 || counts["meta"] == 0 {
		l.warn(Recipients, "", Facts{Encrypted: false}, "Make a key with agent keygen, keep the identity off this host, and set AGENT_RECIPIENTS.",
			"not everything is encrypted: recipients for data %d, for WAL %d, for manifests %d", counts["data"], counts["wal"], counts["meta"])
	} else {
		l.ok(Recipients, "", Facts{Encrypted: true}, "everything is encrypted: recipients for data %d, for WAL %d, for manifests %d", counts["data"], counts["wal"], counts["meta"])
	}
	r.ownIdentity(l)
}

// ownIdentity says whether this host could open backups. A database host need not.
func (r *run) ownIdentity(l *list) {
	if !r.Keys.Identity {
		l.ok(Identity, "", nil, "there is no identity on this host, so that it can archive and cannot open what is encrypted")
		return
	}
	if r.Keys.LoadIdentity == nil {
		l.ok(Identity, "", nil, "an identity is configured, and was not asked for")
		return
	}
	warnings, err := r.Keys.LoadIdentity()
	for _, w := range warnings {
		l.warn(Identity, "", nil, "", "%s", oneLine(w))
	}
	switch {
	case err != nil:
		l.fail(Identity, "", err, errs.Identity, "")
	case len(warnings) == 0:
		l.ok(Identity, "", nil, "this host has an identity: it can restore, and whoever takes it over can read what is encrypted")
	}
}

// state looks at the agent's own directory.
func (r *run) state(l *list, dataDir string) {
	if r.StateErr != nil {
		l.fail(StateDirectory, "", r.StateErr, errs.Config, "")
		for _, n := range []Name{StateID, StateSpace, StatePlace} {
			l.skip(n, "", "there is no state directory")
		}
		return
	}
	if err := r.writeState(); err != nil {
		l.fail(StateDirectory, "", errs.State(err, "use the state directory "+r.StateDir), errs.Config, "")
	} else {
		l.ok(StateDirectory, "", Facts{File: r.StateDir}, "%s can be written", r.StateDir)
	}
	if self, err := host.Read(r.StateDir); err != nil {
		l.fail(StateID, "", err, errs.Config, "")
	} else {
		l.ok(StateID, "", nil, "this host is %s, with an id of its own", self.Name)
	}
	fs, err := r.sys.statfs(r.StateDir)
	if err != nil {
		l.fail(StateSpace, "", err, errs.Config, "")
	} else {
		room(l, StateSpace, "", fs.free, "Make room where the state directory is, or give another with AGENT_STATE_DIR: what is on its way to a repository may be kept there.")
	}
	switch {
	case dataDir != "" && within(dataDir, r.StateDir):
		l.bad(StatePlace, "", errs.Config, nil, "Give another directory with AGENT_STATE_DIR.", "the state directory lies in the data directory %s", dataDir)
	case fs.memory:
		l.warn(StatePlace, "", nil, "Give a directory on a disk with AGENT_STATE_DIR: after a restart the agent would trust whatever repository it finds.",
			"the state directory is in memory (tmpfs), and is lost with a restart")
	default:
		l.ok(StatePlace, "", nil, "it is on a disk, outside the data directory")
	}
}

// writeState makes the directory if need be, and a file in it for a moment.
func (r *run) writeState() (err error) {
	if err := os.MkdirAll(r.StateDir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(r.StateDir, ".tmp-check-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(make([]byte, 64<<10))
	return errors.Join(err, f.Sync(), f.Close())
}
