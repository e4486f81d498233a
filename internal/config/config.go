// Package config turns a YAML file, the environment and flags into one typed
// Config. One table of options (table.go) is the source of everything: what
// is parsed and how, flags, "config show", the help text and the tables in
// docs/configuration.md.
//
// Nothing is guessed: an unknown key, an unknown AGENT_ variable or a value
// that is not allowed is an error that names the key, the value, where it
// was set and what is allowed. The package reads neither the environment nor
// the file system by itself; Input carries both.
package config

import (
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"agent/internal/errs"
)

// DefaultFile is read when neither --config nor AGENT_CONFIG names a file; it
// need not exist.
const DefaultFile = "/etc/agent/agent.yaml"

// EnvConfig is the variable that names the configuration file.
const EnvConfig = "AGENT_CONFIG"

// Config holds every setting of one run, checked and with defaults filled in.
// It is not changed after Load, except StateDir by the caller that resolves
// its default, and is then safe for concurrent use. Printing it, logging it
// or encoding it as JSON shows what Effective shows, without secrets.
type Config struct {
	FilePath string // the configuration file that was read; "" if none

	// Repositories are those of this run, in the order in which they are read
	// from; empty if none is set. At least one of them is required.
	Repositories  []Repository
	Repository    string // URL or absolute path of the first of them; "" if none is set
	DataDirectory string // PGDATA; "" if not set
	Connection    string // libpq conninfo or URL, may hold a password; "" leaves it to the libpq variables
	// PrimaryConnInfo is how to connect to the primary of a standby, like
	// Connection; "" leaves it to the standby's own primary_conninfo.
	PrimaryConnInfo string
	StateDir        string // absolute; "" if not set, see DefaultStateDir
	Compression     string // "METHOD" or "METHOD:LEVEL"

	Recipients     []string // age recipients, or paths of files with recipients; empty: objects are not sealed
	RecipientsWAL  []string // for WAL; Recipients unless set
	RecipientsMeta []string // for manifests and summaries; Recipients unless set

	IdentityFile    string // path; "" if not set
	IdentityCommand string // for sh -c; "" if not set
	Identity        string // secret: age identities, one per line; "" if not set
	SFTPPassword    string // secret; "" if not set
	SFTPPassphrase  string // secret: of an SSH key; "" if not set

	Concurrency     int           // 1 to 64
	Bandwidth       int64         // bytes per second to and from the store; 0 is unlimited
	ReadRate        int64         // bytes per second read from the data directory; 0 is unlimited
	Checkpoint      string        // CheckpointFast or CheckpointSpread
	WALTimeout      time.Duration // how long a backup waits for its WAL
	Timeout         time.Duration // how long one wal-push may take; 0: 60s and the size of the file at 1 MB/s
	MaxBacklog      int64         // bytes of WAL that may wait before it is dropped; 0: none is ever dropped
	StandbyOnOutage string        // OutageWait, OutageNotFound or OutageStop
	MaxIncrementals int           // 0 or more
	FullEvery       time.Duration // longest time from a full backup to the end of its chain
	Keep            Keep          // what agent delete expire leaves
	Label           string        // one line; "" if not set
	LogLevel        slog.Level
	LogFormat       string // LogText or LogJSON

	shared   Repository // what is set for all repositories
	items    []item     // Repositories, if they are from a list
	origins  map[string]origin
	warnings []string
}

// Keep is the policy of retention; a rule of 0 does not count.
type Keep struct {
	Window                                      time.Duration
	Full, Daily, Weekly, Monthly, Yearly, Least int
}

// The values of Config.Checkpoint.
const (
	CheckpointFast   = "fast"
	CheckpointSpread = "spread"
)

// The values of Config.StandbyOnOutage; see promise 2 in the design.
const (
	OutageWait     = "wait"
	OutageNotFound = "notfound"
	OutageStop     = "stop"
)

// The values of Config.LogFormat.
const (
	LogText = "text"
	LogJSON = "json"
)

// Input is all that Load looks at.
type Input struct {
	// Flags maps the flags that were given, among those of Options, to their
	// values. Any other name is refused.
	Flags map[string]string
	// Env looks one variable up, like os.LookupEnv. If nil, Environ is used.
	Env func(string) (string, bool)
	// Environ lists all variables as NAME=value, like os.Environ; unknown
	// AGENT_ and WAL-G variables are found in it.
	Environ []string
	// ReadFile reads a whole file, like os.ReadFile. If nil, no file exists.
	ReadFile func(string) ([]byte, error)
	// Config is the value of --config; "" if it was not given.
	Config string
	// NumCPU decides the default of concurrency.
	NumCPU int
	// Home replaces a leading "~/" in paths; "" if unknown.
	Home string
}

// Load reads the layers and returns the configuration. An error is an
// *errs.Error of kind Config; when several settings are wrong it names all of
// them. The priority rises: defaults, WAL-G's variables, the file, AGENT_
// variables and PGDATA, flags. All layers are checked, also where a higher
// one wins; only WAL-G's variables are not looked at when they lose.
func Load(in Input) (*Config, error) {
	if in.Env == nil {
		in.Env = lookupIn(in.Environ)
	}
	if in.ReadFile == nil {
		in.ReadFile = func(string) ([]byte, error) { return nil, fs.ErrNotExist }
	}
	l := &loader{in: in, table: table(), won: layer{}}
	c := &Config{origins: map[string]origin{}}
	l.run(c)
	if err := l.problems.err(); err != nil {
		return nil, err
	}
	c.warnings = l.warnings
	return c, nil
}

// Warnings are for the caller to log: settings that were ignored, and
// combinations that are probably not meant. None holds a secret.
func (c Config) Warnings() []string { return c.warnings }

// NeedRepository returns an error of kind Config that says how to name a
// repository, if none is set.
func (c Config) NeedRepository() error {
	if c.Repository != "" {
		return nil
	}
	return errs.New(errs.Config,
		"Set AGENT_REPOSITORY, --repository, or repository in "+DefaultFile+
			", for example to file:///backup/main.",
		"no repository is configured")
}

// loader carries what the steps of one Load share.
type loader struct {
	in       Input
	table    []option
	won      layer // of each key the value that counts, unless that is a default
	problems problems
	warnings []string
}

// layer holds the raw values of one layer by key.
type layer map[string]value

func (l *loader) run(c *Config) {
	var file layer
	c.FilePath, file = l.readFile()
	env := l.readEnv()
	flags := l.readFlags()
	own := func(key string) (origin, bool) {
		for _, from := range []layer{flags, env, file} {
			if v, ok := from[key]; ok {
				return v.origin, true
			}
		}
		return origin{}, false
	}
	walg := l.readWALG(own)
	chosen := l.choose(walg, file, env, flags)
	l.readStoreAliases(own, chosen, walg)

	for _, o := range l.table {
		if o.parse == nil {
			continue
		}
		if o.fallback != nil {
			l.set(c, o, value{items: []string{o.fallback(l.in)}})
		}
		for _, from := range []layer{walg, file, env, flags} {
			if v, ok := from[o.Key]; ok {
				l.set(c, o, v)
			}
		}
	}
	l.takeRepositories(c, chosen)
	l.finish(c)
}

// set parses one value into c and notes where it is from.
func (l *loader) set(c *Config, o option, v value) {
	reason := o.check(v)
	if reason == nil {
		reason = o.parse(c, v, l.in.Home)
	}
	if reason != nil {
		l.problems.add(badValue(o, v, reason))
		return
	}
	c.origins[o.Key] = v.origin
	if v.origin.kind != fromDefault {
		l.won[o.Key] = v
	}
}

// finish fills in what depends on several settings, and warns.
func (l *loader) finish(c *Config) {
	if c.RecipientsWAL == nil {
		c.RecipientsWAL = c.Recipients
	}
	if c.RecipientsMeta == nil {
		c.RecipientsMeta = c.Recipients
	}
	if len(c.Recipients) == 0 && len(c.RecipientsWAL)+len(c.RecipientsMeta) > 0 {
		l.warn("recipients is not set while recipients_wal or recipients_meta is: data files are stored unencrypted")
	}
	for _, o := range []struct{ key, flag, env, value string }{
		{"connection", "connection", "AGENT_CONNECTION", c.Connection},
		{"primary_conninfo", "primary", "AGENT_PRIMARY_CONNINFO", c.PrimaryConnInfo},
	} {
		if c.origins[o.key].kind == fromFlag && MaskConnection(o.value) != o.value {
			l.warn("the password in --%s can be read in the process list: use %s, a .pgpass file or a service file", o.flag, o.env)
		}
	}
}

func (l *loader) warn(format string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf(format, args...))
}
