package early

import (
	"hash/fnv"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The commands that PostgreSQL calls for every WAL file.
const (
	Push  = "wal-push"
	Fetch = "wal-fetch"
)

// Flags of wal-fetch that change what it answers, so that no other process
// answers for it.
const (
	NoPrefetch = "no-prefetch"
	EndBefore  = "end-before"
)

// RecoveryFile is the name that recovery gives to restore_command for every
// segment (xlogrecovery.c, XLogFileRead). Whoever else fetches, such as
// pg_rewind, names the segment itself.
const RecoveryFile = "RECOVERYXLOG"

// DefaultConfig is the file that package config reads where no other is named.
const DefaultConfig = "/etc/agent/agent.yaml"

// Call is one call of archive_command or restore_command that another process
// may answer.
type Call struct {
	Command string // Push or Fetch
	File    string // name of the WAL file
	Path    string // of the WAL file, or of its destination, as it was given

	args []string // all but that for the WAL file
}

// Find takes the arguments of the program for a call; ok is false for all others.
// It need not be right about them: a process answers only calls that are equal
// to the one that has started it.
func Find(args []string) (c Call, ok bool) {
	switch {
	case slices.Contains(args, Push):
		c.Command = Push
	case slices.Contains(args, Fetch):
		c.Command = Fetch
	default:
		return Call{}, false
	}
	for _, arg := range args {
		base := path.Base(arg)
		switch {
		case c.Command == Fetch && (strings.HasPrefix(arg, "--"+NoPrefetch) || strings.HasPrefix(arg, "--"+EndBefore)):
			return Call{}, false
		case c.Command == Fetch && base == RecoveryFile:
			c.Path = arg
			c.args = append(c.args, arg)
		case isWAL(base) && c.File == "" && (c.Command == Push || arg == base && len(arg) == segmentLength):
			c.File = base
			if c.Command == Push {
				c.Path = arg
			}
		default:
			c.args = append(c.args, arg)
		}
	}
	return c, c.File != "" && c.Path != ""
}

// segmentLength is that of the name of a segment, with which those of partial
// segments and backup histories begin.
const segmentLength = 24

// isWAL reports whether it may be the name of a WAL file (xlog_internal.h,
// IsXLogFileName and others). It goes into a question as it is.
func isWAL(name string) bool {
	const digits = "0123456789ABCDEF"
	if timeline, ok := strings.CutSuffix(name, ".history"); ok {
		return len(timeline) == 8 && strings.Trim(timeline, digits) == ""
	}
	if len(name) < segmentLength || strings.Trim(name[:segmentLength], digits) != "" {
		return false
	}
	rest := name[segmentLength:]
	return rest == "" || rest[0] == '.' && strings.Trim(rest, digits+".abcdefghijklmnopqrstuvwxyz") == ""
}

// Name is that of the process (package beside) which a call like this one has
// started: with the same command, directory, arguments, configuration file and
// program. What it is made of is no secret: whether the environments are equal,
// that process finds out. getenv is as os.Getenv.
func (c Call) Name(getenv func(string) string) (string, error) {
	h := fnv.New128a()
	add := func(part string) { _, _ = h.Write([]byte(strconv.Itoa(len(part)) + ":" + part)) } // a hash takes all
	// Another directory at the same path is another one, and paths are relative
	// to the working directory. A new version of the program is another file.
	for _, at := range []string{path.Dir(c.Path), ".", "/proc/self/exe"} {
		id, err := identity(at)
		if err != nil {
			return "", err
		}
		add(id)
	}
	config := []string{DefaultConfig, getenv("AGENT_CONFIG")}
	for i, arg := range c.args {
		add(arg)
		if value, ok := strings.CutPrefix(arg, "--config="); ok {
			config = append(config, value)
		}
		if arg == "--config" && i+1 < len(c.args) {
			config = append(config, c.args[i+1])
		}
	}
	for _, at := range config {
		if rest, ok := strings.CutPrefix(at, "~/"); ok {
			at = path.Join(getenv("HOME"), rest)
		}
		id, err := identity(at)
		if err != nil {
			id = "none"
		}
		add(id)
	}
	name := strings.Builder{}
	name.WriteString("agent-" + c.Command + "-")
	for _, b := range h.Sum(nil) {
		name.WriteString(strconv.FormatUint(uint64(b)+0x100, 16)[1:])
	}
	return name.String(), nil
}

// identity tells a file or directory from any other that is or was at its path;
// a file also from what it was before.
func identity(at string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(at, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: at, Err: err}
	}
	id := strconv.FormatUint(st.Dev, 10) + ":" + strconv.FormatUint(st.Ino, 10)
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return id, nil
	}
	return id + ":" + strconv.FormatInt(st.Size, 10) + ":" + strconv.FormatInt(st.Mtim.Nano(), 10), nil
}
