package postgres

import (
	"fmt"
	"strings"

	"agent/internal/errs"
)

// RequirePrivileges is an error with all GRANTs that the role needs for a
// backup and lacks: where the data directory is, and the backup functions.
func (i Info) RequirePrivileges() error {
	var lacks []string
	var needs []Privilege
	if i.DataDirectory == "" {
		lacks, needs = append(lacks, "read the setting data_directory"), append(needs, PrivilegeSettings)
	}
	if i.BackupDenied {
		lacks, needs = append(lacks, "start and stop backups"), append(needs, PrivilegeBackup)
	}
	if len(needs) == 0 {
		return nil
	}
	return errs.New(errs.Server, grantHint(i.Major, i.Role, i.Database, needs...),
		"role %q may not %s", i.Role, strings.Join(lacks, ", and may not "))
}

// Preflight collects what in the server's settings stands in the way of a
// backup with archived WAL: all of it in one *errs.Error of Kind Server, or nil.
// On a standby the WAL is archived by the primary, whose settings cannot be
// seen, so there archive_mode is not looked at; nor is it where WAL is received.
func Preflight(info Info) error {
	var problems, hints []string
	add := func(hint, format string, args ...any) {
		problems = append(problems, fmt.Sprintf(format, args...))
		hints = append(hints, hint)
	}
	if !SupportedMajor(info.Major) {
		add("Use a version of the agent that knows this server.", "PostgreSQL %d is not supported, %d to %d are", info.Major, MinMajor, MaxMajor)
	}
	if info.WALLevel == WALLevelMinimal.String() {
		add("Set wal_level = replica and restart the server.", "wal_level is minimal, so that WAL cannot restore anything")
	}
	if info.BlockSize != 0 && info.BlockSize != 8192 {
		add("Only servers built with the default block size are supported.", "block_size is %d", info.BlockSize)
	}
	switch {
	case info.InRecovery && !info.FullPageWrites:
		add("Set full_page_writes = on on the primary and wait for the next restartpoint.",
			"the standby replayed WAL that was written with full_page_writes = off")
	case info.InRecovery:
	case info.Received:
		// Its WAL may come by agent wal-receive; the backup waits for it.
	case info.ArchiveMode == "off":
		add("Set archive_mode = on and an archive_command that calls agent wal-push, and restart the server; or run agent wal-receive.", "archive_mode is off, and nobody receives WAL")
	case info.ArchiveCommand == "" && info.ArchiveLibrary == "":
		add("Set an archive_command that calls agent wal-push and reload the server.", "archive_mode is on, but archive_command is empty, so WAL piles up in pg_wal")
	}
	if len(problems) == 0 {
		return nil
	}
	return errs.New(errs.Server, strings.Join(hints, " "), "the server is not ready for backups: %s", strings.Join(problems, "; "))
}
