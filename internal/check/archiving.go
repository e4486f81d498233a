package check

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

// The waits between looks for a segment.
const (
	arrivalFirst = 50 * time.Millisecond
	arrivalMost  = 2 * time.Second
)

// archiving follows a segment from the server to every repository. The
// archiver is judged last, by what became of it, and told first.
func (s *server) archiving(ctx context.Context, l *list, places []*probe) {
	stats := s.info.Archiver
	var found list
	if segment, by, ok := s.switched(ctx, &found); ok {
		began := s.Now()
		arrived := s.arrivals(ctx, segment, places)
		theirs, err := by.server.ArchiverStats(ctx)
		if err != nil {
			theirs = by.info.Archiver
		}
		if by.server == s.server {
			stats = theirs
		}
		for i, p := range places {
			s.arrival(&found, p, segment, arrived[i], began, theirs)
		}
	} else {
		for _, p := range places {
			found.skip(ArchivingArrival, p.place.Name, "no segment was switched")
		}
	}
	if s.err == nil {
		s.archiver(l, stats)
	}
	s.dataDirectory(ctx, l)
	*l = append(*l, found...)
	s.backlog(l)
	for _, p := range places {
		s.gap(ctx, l, p)
	}
}

// switched makes the server, or that of a standby its primary, end a segment. A
// restore point comes first, since no server ends one with nothing in it. by is
// the session with the server that did, and archives.
func (s *server) switched(ctx context.Context, l *list) (ended postgres.Segment, by session, ok bool) {
	command := s.info.ArchiveCommand
	reason := ""
	switch {
	case s.NoSwitch:
		reason = "--no-switch was given"
	case s.err != nil:
		reason = "there is no connection to the server"
	case s.info.Received, s.info.InRecovery && len(s.Places) > 0:
	case s.info.ArchiveMode == "off":
		reason = "archive_mode is off"
	case command == "" && s.info.ArchiveLibrary == "":
		reason = "archive_command is empty"
	case len(s.Places) == 0:
		reason = "there is no repository"
	}
	if reason != "" {
		l.skip(ArchivingSwitch, "", reason)
		return ended, by, false
	}
	if by, ok = s.writing(ctx, l); !ok {
		return ended, by, false
	}
	ctx, cancel := context.WithTimeout(ctx, s.sys.answer)
	defer cancel()
	_, err := by.server.CreateRestorePoint(ctx, "agent check "+s.Now().UTC().Format(time.RFC3339))
	var end postgres.LSN
	if err == nil {
		end, err = by.server.SwitchWAL(ctx)
	}
	switch {
	case denied(err):
		grants := postgres.Grants(by.info.Major, by.info.Role, postgres.PrivilegeRestorePoint, postgres.PrivilegeSwitchWAL)
		l.add(Check{
			Name: ArchivingSwitch, Status: Skipped, Text: fmt.Sprintf("role %q may not switch WAL, so that the way of a segment was not tried", by.info.Role),
			Hint: fmt.Sprintf("As a superuser run in database %q: %s;", by.info.Database, strings.Join(grants, "; ")),
		})
		return ended, by, false
	case err != nil:
		l.fail(ArchivingSwitch, "", err, errs.Server, "")
		return ended, by, false
	}
	size := by.info.WALSegmentSize
	ended = postgres.Segment{Timeline: by.info.Timeline, Number: end.LastSegment(size)}
	who := "server"
	if s.info.InRecovery {
		who = "primary"
	}
	l.ok(ArchivingSwitch, "", Facts{Segment: ended.Name(size)}, "the %s ended the segment %s", who, ended.Name(size))
	return ended, by, true
}

// denied reports whether the server refused for lack of a privilege (SQLSTATE
// 42501, insufficient_privilege).
func denied(err error) bool {
	var coded interface{ SQLState() string }
	return errors.As(err, &coded) && coded.SQLState() == "42501"
}

// result is what became of a segment in one repository.
type result struct {
	at  time.Time // when it was seen; zero: it was not
	err error     // of the last look
}

// arrivals waits for the segment in every repository that can be used.
func (s *server) arrivals(ctx context.Context, segment postgres.Segment, places []*probe) []result {
	ctx, cancel := context.WithTimeout(ctx, s.WALTimeout)
	defer cancel()
	all := make([]result, len(places))
	name := segment.Name(s.info.WALSegmentSize)
	file, err := postgres.ParseWALFile(name)
	key := repo.ClusterID(s.info.SystemIdentifier).WALKey(file, [32]byte{})
	var wait sync.WaitGroup
	for i, p := range places {
		if all[i].err = err; err != nil || p.unusable != "" {
			continue
		}
		wait.Go(func() { all[i] = s.await(ctx, p.place.Bucket, key) })
	}
	wait.Wait()
	return all
}

func (s *server) await(ctx context.Context, b storage.Bucket, key string) (r result) {
	for wait := arrivalFirst; ; wait = min(wait*2, arrivalMost) {
		_, err := b.Stat(ctx, key)
		if err == nil {
			return result{at: s.Now()}
		}
		if ctx.Err() == nil || r.err == nil {
			r.err = err
		}
		if !pause(ctx, wait) {
			return r
		}
	}
}

// arrival tells what became of the segment in one repository.
func (s *server) arrival(l *list, p *probe, segment postgres.Segment, r result, began time.Time, stats postgres.ArchiverStats) {
	place, name := p.place.Name, segment.Name(s.info.WALSegmentSize)
	if p.unusable != "" {
		l.skip(ArchivingArrival, place, "the repository cannot be used")
		return
	}
	if !r.at.IsZero() {
		facts := Facts{Segment: name, ElapsedSeconds: r.at.Sub(began).Round(10 * time.Millisecond).Seconds()}
		l.ok(ArchivingArrival, place, facts, "%s arrived after %v s", name, facts[ElapsedSeconds])
		return
	}
	text := fmt.Sprintf("%s did not arrive within %s", name, s.WALTimeout)
	switch {
	case failing(stats):
		text += fmt.Sprintf("; the server says that archive_command fails for %s, last at %s", stats.LastFailedWAL, stats.LastFailedTime.Format(time.RFC3339))
	case stats.LastArchivedWAL >= name:
		text += "; the server says that it was archived, so it went elsewhere"
	case stats.LastArchivedWAL == "":
		text += "; the server says that nothing was archived yet"
	default:
		text += fmt.Sprintf("; the server says that the last file that was archived is %s", stats.LastArchivedWAL)
	}
	if r.err != nil && !errors.Is(r.err, storage.ErrNotExist) {
		text += "; " + oneLine(r.err.Error())
	}
	facts := Facts{Segment: name}
	if p.place.Required {
		l.bad(ArchivingArrival, place, errs.Server, facts, "archive_command must be 'agent wal-push %p' with this repository. "+hintLog, "%s", text)
		return
	}
	l.warn(ArchivingArrival, place, facts, "This repository is best effort; agent repo sync brings it up to date.", "%s", text)
}
