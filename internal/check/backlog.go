package check

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"agent/internal/archive"
	"agent/internal/backlog"
	"agent/internal/errs"
	"agent/internal/repo"
)

// backlog judges what waits in pg_wal, also where there is no connection.
func (s *server) backlog(l *list) {
	dir := s.dataDir()
	switch {
	case dir == "":
		l.skip(ArchivingBacklog, "", "the data directory is not known")
		return
	case s.err == nil && s.info.ArchiveMode == "off":
		l.skip(ArchivingBacklog, "", "archive_mode is off")
		return
	}
	b, err := backlog.Look(filepath.Join(dir, "pg_wal"), s.Now())
	if err != nil {
		l.add(Check{Name: ArchivingBacklog, Status: Skipped, Text: oneLine(err.Error()), Hint: "Run the check on the server's host, as the user that PostgreSQL runs as."})
		return
	}
	facts := Facts{
		Waiting: b.Files, WaitingBytes: b.Bytes, OldestSeconds: b.Age().Round(time.Second).Seconds(),
		MadePerSecond: int64(b.Made), DonePerSecond: int64(b.Archived), FreeBytes: b.Free,
	}
	if full, ok := b.FullIn(); ok {
		facts[FullInSeconds] = full.Round(time.Second).Seconds()
	}
	switch level, reasons := b.Level(); level {
	case backlog.Critical:
		l.bad(ArchivingBacklog, "", errs.Server, facts, backlog.Hint, "%s: %s", strings.Join(reasons, ", "), b)
	case backlog.Warning:
		l.warn(ArchivingBacklog, "", facts, backlog.Hint, "%s: %s", strings.Join(reasons, ", "), b)
	default:
		l.ok(ArchivingBacklog, "", facts, "%s", b)
	}
}

// gap looks for WAL that was dropped and behind which no backup has begun.
func (s *server) gap(ctx context.Context, l *list, p *probe) {
	place := p.place.Name
	if p.unusable != "" || s.info.SystemIdentifier == 0 {
		l.skip(ArchivingGap, place, "the repository cannot be used, or the server's cluster is not known")
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, placeLimit, errTooLong(placeLimit))
	defer cancel()
	r := repo.New([]repo.Place{p.place.Place}, repo.Options{Log: s.Log, Now: s.Now, Version: s.Version})
	dropped, err := archive.Open(ctx, r, repo.ClusterID(s.info.SystemIdentifier))
	if err != nil {
		told := &probe{run: p.run, place: p.place}
		told.failStore(ctx, ArchivingGap, err)
		*l = append(*l, told.list...)
		return
	}
	if len(dropped) == 0 {
		l.ok(ArchivingGap, place, nil, "no WAL was dropped behind the newest backup")
		return
	}
	first := dropped[0]
	l.bad(ArchivingGap, place, errs.Gap, Facts{DroppedRanges: len(dropped)}, "Take a new backup now: agent backup-push. Until it is there, nothing that has happened since then can be recovered.",
		"WAL was dropped (max_backlog), %s to %s, at %s, and no backup has begun since then", first.First, first.Last, first.At.UTC().Format(time.RFC3339))
}
