package check

import (
	"context"
	"fmt"

	"agent/internal/errs"
	"agent/internal/postgres"
)

// writing is the session with the server that writes WAL: on a standby one with
// its primary. That it cannot be had is no failure: a standby does without, and
// a backup from it waits until the primary ends a segment by itself.
func (s *server) writing(ctx context.Context, l *list) (session, bool) {
	if !s.info.InRecovery {
		return s.session, true
	}
	conninfo, err := s.primaryConnInfo(ctx)
	if err == nil {
		s.primary = s.dial(ctx, func(life context.Context) (*postgres.Server, error) {
			return postgres.ConnectPrimary(life, conninfo, "agent check")
		})
		err = s.primary.err
	}
	if err != nil {
		l.add(Check{
			Name: ArchivingSwitch, Status: Skipped, Hint: errs.HintOf(err),
			Text: oneLine(fmt.Sprintf("the server is a standby, and its primary, which ends segments, could not be asked: %v", err)),
		})
		return session{}, false
	}
	if err := s.primary.info.RequireCluster(s.info); err != nil {
		l.fail(ArchivingSwitch, "", err, errs.Foreign, "")
		return session{}, false
	}
	return s.primary, true
}

func (s *server) primaryConnInfo(ctx context.Context) (string, error) {
	if s.PrimaryConnInfo != "" {
		return s.PrimaryConnInfo, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.sys.answer)
	defer cancel()
	return s.server.PrimaryConnInfo(ctx)
}
