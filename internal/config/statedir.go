package config

import (
	"path/filepath"

	"agent/internal/errs"
)

// systemStateDir is the state directory that packages make.
const systemStateDir = "/var/lib/agent"

// DefaultStateDir is where local state goes when state_dir is not set:
// /var/lib/agent if it exists, else $XDG_STATE_HOME/agent, else
// $HOME/.local/state/agent (XDG Base Directory Specification, which has
// relative values ignored). env is like os.LookupEnv. The directory is not
// made. If none can be told the error, of kind Config, says what to set.
func DefaultStateDir(env func(string) (string, bool), exists func(string) bool) (string, error) {
	if exists(systemStateDir) {
		return systemStateDir, nil
	}
	if dir, _ := env("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "agent"), nil
	}
	if dir, _ := env("HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, ".local", "state", "agent"), nil
	}
	return "", errs.New(errs.Config,
		"Set AGENT_STATE_DIR, --state-dir or state_dir to a directory that this user can write, or make "+systemStateDir+".",
		"there is no place for local state: %s does not exist, and neither XDG_STATE_HOME nor HOME is an absolute path", systemStateDir)
}
