package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
)

// server checks PostgreSQL.
type server struct {
	*run
	session         // with the server itself
	primary session // of a standby, while it can be connected to
}

// session is one with a server, and what that says about itself.
type session struct {
	server *postgres.Server
	end    context.CancelFunc // ends the session; nil if there is none
	info   postgres.Info
	err    error // why there is no info
}

// connect asks the server about itself.
func (s *server) connect(ctx context.Context) {
	s.session = s.dial(ctx, func(life context.Context) (*postgres.Server, error) {
		return postgres.Connect(life, s.ConnInfo, "agent check")
	})
}

// dial opens a session and asks who is there, within the time that an answer
// may take.
func (s *server) dial(ctx context.Context, open func(context.Context) (*postgres.Server, error)) (to session) {
	// The session lives longer than its beginning, which has a limit.
	life, end := context.WithCancel(ctx)
	to.end = end
	limit := time.AfterFunc(s.sys.answer, end)
	if to.server, to.err = open(life); to.err == nil {
		to.info, to.err = to.server.Info(life)
	}
	if !limit.Stop() && to.err != nil && ctx.Err() == nil {
		to.err = errs.New(errs.Server, "Try psql with the same PGHOST and PGPORT, and look at the server's log.", "the server did not answer within %s", s.sys.answer)
	}
	return to
}

func (s *server) disconnect(ctx context.Context) {
	for _, to := range []session{s.session, s.primary} {
		if to.server != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			if err := to.server.Close(ctx); err != nil {
				s.Log.Debug("end session", "error", err.Error())
			}
			cancel()
		}
		if to.end != nil {
			to.end()
		}
	}
}

// dataDir is the data directory, as far as it is known; else "".
func (s *server) dataDir() string {
	if s.info.DataDirectory != "" {
		return s.info.DataDirectory
	}
	return s.DataDirectory
}

// ofServer are the checks that need a session.
func ofServer() []Name {
	return []Name{
		ServerVersion, ServerRole, ServerGrants, ServerWALLevel, ServerArchiveMode, ServerFullPageWrites, ServerChecksums,
		ServerSegmentSize, ServerArchiveCommand, ServerArchiver,
	}
}

// checks judges what the server says.
func (s *server) checks(_ context.Context, l *list) {
	if s.err != nil {
		l.fail(ServerConnection, "", s.err, errs.Server, "")
		for _, n := range ofServer() {
			l.skip(n, "", "there is no connection to the server")
		}
		return
	}
	i := s.info
	l.ok(ServerConnection, "", nil, "connected to database %q as role %q", i.Database, i.Role)
	s.about(l)
	if err := i.RequirePrivileges(); err != nil {
		l.fail(ServerGrants, "", err, errs.Server, "")
	} else {
		l.ok(ServerGrants, "", nil, "role %q may do what a backup needs", i.Role)
	}
	s.settings(l)
	s.archiveCommand(l)
}

func (s *server) about(l *list) {
	i := s.info
	facts := Facts{VersionNum: i.VersionNum, Value: i.Version}
	if i.BlockSize == 8192 {
		l.ok(ServerVersion, "", facts, "PostgreSQL %s", i.Version)
	} else {
		l.bad(ServerVersion, "", errs.Server, facts, "Only servers built with the default block size are supported.", "PostgreSQL %s has pages of %d bytes", i.Version, i.BlockSize)
	}
	facts = Facts{InRecovery: i.InRecovery, SystemIdentifier: fmt.Sprint(i.SystemIdentifier)}
	role := "primary"
	if i.InRecovery {
		role = "standby"
	}
	l.ok(ServerRole, "", facts, "%s of cluster %d on timeline %d", role, i.SystemIdentifier, i.Timeline)
}

// settings judges those that decide whether WAL can restore anything.
func (s *server) settings(l *list) {
	i := s.info
	if i.WALLevel == postgres.WALLevelMinimal.String() {
		l.bad(ServerWALLevel, "", errs.Server, Facts{Value: i.WALLevel}, "Set wal_level = replica and restart the server.", "wal_level is minimal, so that WAL cannot restore anything")
	} else {
		l.ok(ServerWALLevel, "", Facts{Value: i.WALLevel}, "wal_level is %s", i.WALLevel)
	}
	s.archiveMode(l)
	if i.FullPageWrites {
		l.ok(ServerFullPageWrites, "", nil, "full_page_writes is on")
	} else {
		l.bad(ServerFullPageWrites, "", errs.Server, nil, "Set full_page_writes = on (on the primary) and reload the server: a backup of pages that are being written needs it.",
			"full_page_writes is off")
	}
	if i.DataChecksums {
		l.ok(ServerChecksums, "", nil, "pages have checksums")
	} else {
		l.warn(ServerChecksums, "", nil, "Without them a backup cannot tell damaged pages; pg_checksums --enable switches them on while the server is stopped.", "pages have no checksums")
	}
	l.ok(ServerSegmentSize, "", Facts{Value: i.WALSegmentSize.String()}, "WAL segments have %s", i.WALSegmentSize)
	if i.Major >= 17 {
		on := map[bool]string{true: "on", false: "off"}[i.SummarizeWAL]
		l.ok(ServerSummarizeWAL, "", Facts{Value: on}, "summarize_wal is %s; the agent does not need it", on)
	}
}

func (s *server) archiveMode(l *list) {
	const hint = "Set archive_mode = on and archive_command = 'agent wal-push %p', and restart the server."
	i := s.info
	facts := Facts{Value: i.ArchiveMode}
	switch {
	case i.ArchiveMode == "off" && i.Received:
		l.ok(ServerArchiveMode, "", facts, "archive_mode is off, and WAL is streamed from a slot")
	case i.ArchiveMode != "off":
		l.ok(ServerArchiveMode, "", facts, "archive_mode is %s", i.ArchiveMode)
	case i.InRecovery:
		l.warn(ServerArchiveMode, "", facts, hint, "archive_mode is off on this standby, and nothing will be archived when it is promoted")
	default:
		l.bad(ServerArchiveMode, "", errs.Server, facts, hint, "archive_mode is off")
	}
}

// archiveCommand looks whether the server archives by this agent. The command
// is not shown: it may hold secrets.
func (s *server) archiveCommand(l *list) {
	const hint = "Set archive_command = 'agent wal-push %p', with the path of the agent if it is not in the server's PATH, and reload the server."
	i := s.info
	name := filepath.Base(s.Program)
	c := parseCommand(i.ArchiveCommand, name)
	switch {
	case i.ArchiveMode == "off":
		l.skip(ServerArchiveCommand, "", "archive_mode is off, and the server does not show archive_command then")
	case i.ArchiveLibrary != "":
		l.bad(ServerArchiveCommand, "", errs.Server, nil, "Set archive_library = '' and archive_command = 'agent wal-push %p', and reload the server.",
			"archive_library is set, so that the server does not call archive_command")
	case strings.TrimSpace(i.ArchiveCommand) == "":
		l.bad(ServerArchiveCommand, "", errs.Server, nil, hint, "archive_command is empty: WAL piles up in pg_wal")
	case !c.push:
		l.warn(ServerArchiveCommand, "", nil, hint, "archive_command does not call %s wal-push, it calls %s", name, programName(c.program))
	case !c.path:
		l.warn(ServerArchiveCommand, "", nil, hint, "archive_command does not give wal-push the path of the file: %%p is missing")
	case missing(c.program):
		l.bad(ServerArchiveCommand, "", errs.Server, nil, hint, "archive_command calls %s, which is not there", c.program)
	case c.operator != "":
		l.warn(ServerArchiveCommand, "", nil, "Call wal-push alone: its exit status is what tells the server that a file is safe.",
			"archive_command is more than one command (%s)", operatorName(c.operator))
	default:
		l.ok(ServerArchiveCommand, "", nil, "archive_command calls %s wal-push", programName(c.program))
	}
}

func operatorName(op string) string {
	if op == "\n" {
		return "on several lines"
	}
	return "joined by " + op
}

// programName is a program as messages may show it: what has no slash and is
// not a plain word may be anything.
func programName(word string) string {
	if word == "" {
		return "no program"
	}
	base := filepath.Base(word)
	if len(base) > 40 || strings.Trim(base, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-") != "" {
		return "another program"
	}
	return base
}

// missing says whether a program that is named by an absolute path is not on
// this host.
func missing(program string) bool {
	if !filepath.IsAbs(program) {
		return false
	}
	_, err := os.Stat(program)
	return errors.Is(err, fs.ErrNotExist)
}

// dataDirectory looks whether the server's files can be read here, and are its
// own.
func (s *server) dataDirectory(ctx context.Context, l *list) {
	if s.err != nil || s.info.DataDirectory == "" {
		l.skip(ServerDataDirectory, "", "the server did not say where it is")
		return
	}
	control, _, err := postgres.ReadControl(ctx, s.info.DataDirectory)
	if err != nil {
		l.fail(ServerDataDirectory, "", err, errs.Server, "backup-push runs on the host of the database, as the user that PostgreSQL runs as.")
		return
	}
	if control.SystemIdentifier != s.info.SystemIdentifier {
		l.bad(ServerDataDirectory, "", errs.Foreign, nil, "Run the check on the host of the server that the connection settings (PGHOST, PGPORT) lead to.",
			"%s on this host belongs to cluster %d, the server is cluster %d", s.info.DataDirectory, control.SystemIdentifier, s.info.SystemIdentifier)
		return
	}
	if given := s.DataDirectory; given != "" && !same(given, s.info.DataDirectory) {
		l.bad(ServerDataDirectory, "", errs.Foreign, nil, "Check PGHOST, PGPORT and PGDATA.", "%s is not the data directory of the server, which is %s", given, s.info.DataDirectory)
		return
	}
	l.ok(ServerDataDirectory, "", Facts{File: s.info.DataDirectory}, "%s can be read, and is the server's own", s.info.DataDirectory)
}

func same(a, b string) bool {
	x, xerr := os.Stat(a)
	y, yerr := os.Stat(b)
	return xerr == nil && yerr == nil && os.SameFile(x, y)
}

// archiver judges pg_stat_archiver.
func (s *server) archiver(l *list, stats postgres.ArchiverStats) {
	if s.err != nil || s.info.ArchiveMode == "off" {
		l.skip(ServerArchiver, "", "the server does not archive")
		return
	}
	if s.info.InRecovery && s.info.ArchiveMode != "always" {
		l.skip(ServerArchiver, "", "the server is a standby and archive_mode is not always, so that its primary archives")
		return
	}
	facts := Facts{FailedCount: stats.FailedCount}
	waiting := s.waiting()
	if waiting >= 0 {
		facts[Waiting] = waiting
	}
	if !stats.LastArchivedTime.IsZero() {
		facts[LastArchived] = stats.LastArchivedTime
	}
	if !stats.LastFailedTime.IsZero() {
		facts[LastFailed] = stats.LastFailedTime
	}
	switch {
	case failing(stats):
		text := fmt.Sprintf("archive_command fails for %s, last at %s", stats.LastFailedWAL, stats.LastFailedTime.Format(time.RFC3339))
		if waiting > 0 {
			text += fmt.Sprintf("; %d files wait", waiting)
		}
		if stats.LastArchivedTime.IsZero() {
			text += "; nothing was ever archived"
		} else {
			text += "; nothing was archived since " + stats.LastArchivedTime.Format(time.RFC3339)
		}
		l.bad(ServerArchiver, "", errs.Server, facts, hintLog, "%s", text)
	case stats.LastArchivedTime.IsZero():
		l.ok(ServerArchiver, "", facts, "nothing was archived yet, and nothing has failed")
	default:
		l.ok(ServerArchiver, "", facts, "the last file, %s, was archived at %s", stats.LastArchivedWAL, stats.LastArchivedTime.Format(time.RFC3339))
	}
}

const hintLog = "Look at the server's log for what archive_command says."

// failing reports whether the archiver's newest news is a failure.
func failing(a postgres.ArchiverStats) bool { return a.LastFailedTime.After(a.LastArchivedTime) }

// waiting counts the files that are ready to be archived, by the files with
// which the server remembers them; -1: not known.
func (s *server) waiting() int {
	ready, err := os.ReadDir(filepath.Join(s.dataDir(), "pg_wal", "archive_status"))
	if err != nil {
		return -1
	}
	n := 0
	for _, f := range ready {
		if strings.HasSuffix(f.Name(), ".ready") {
			n++
		}
	}
	return n
}
