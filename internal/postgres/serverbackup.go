package postgres

import (
	"context"
	"strings"

	"agent/internal/errs"
)

// maxLabel is the longest label of a backup in bytes (MAXPGPATH in
// src/include/pg_config_manual.h).
const maxLabel = 1024

// StopResult is what a finished backup needs for its restore.
type StopResult struct {
	LSN           LSN    // exclusive: all WAL before it is needed
	Label         []byte // backup_label, byte for byte
	TablespaceMap []byte // tablespace_map, byte for byte; empty: no file
}

// StartBackup begins a non-exclusive backup and returns the LSN from which WAL
// is needed. It takes as long as a checkpoint: spread over the checkpoint's
// usual time, or at full speed if fast. The label is one line of up to 1024
// bytes. The backup ends by StopBackup or, unfinished, with the session.
func (s *Server) StartBackup(ctx context.Context, label string, fast bool) (LSN, error) {
	if len(label) > maxLabel || strings.ContainsAny(label, "\r\n\x00") {
		return 0, errs.New(errs.Usage, "", "the backup label must be one line of at most %d bytes", maxLabel)
	}
	// 15 renamed the function and dropped exclusive backups.
	sql := `SELECT pg_backup_start($1::text, $2::boolean)::text`
	if s.Major() < 15 {
		sql = `SELECT pg_start_backup($1::text, $2::boolean, false)::text`
	}
	return s.lsn(ctx, "start the backup", s.denied(PrivilegeBackup), sql, label, fast)
}

// StopBackup ends the session's backup. It does not wait for WAL to be
// archived: whoever calls it has to see to the last segment, LSN.LastSegment,
// being safe. On a primary the server has switched to a new segment; on a
// standby that segment comes when the primary switches.
func (s *Server) StopBackup(ctx context.Context) (StopResult, error) {
	sql := `SELECT lsn::text, labelfile, coalesce(spcmapfile, '') FROM pg_backup_stop(false)`
	if s.Major() < 15 {
		sql = `SELECT lsn::text, labelfile, coalesce(spcmapfile, '') FROM pg_stop_backup(false, false)`
	}
	var lsn, label, spaces string
	if err := s.row(ctx, sql, nil, &lsn, &label, &spaces); err != nil {
		return StopResult{}, serverError(err, "stop the backup", s.denied(PrivilegeBackup))
	}
	at, err := ParseLSN(lsn)
	if err != nil {
		return StopResult{}, errs.Wrap(err, errs.Server, "", "stop the backup")
	}
	return StopResult{LSN: at, Label: []byte(label), TablespaceMap: []byte(spaces)}, nil
}

// SwitchWAL makes the server begin a new segment, so that the one at hand can
// be archived, and returns the end of the old one's WAL. On an idle server
// there is nothing to switch: create a restore point before. It fails on a
// standby.
func (s *Server) SwitchWAL(ctx context.Context) (LSN, error) {
	return s.lsn(ctx, "switch to a new WAL segment", s.denied(PrivilegeSwitchWAL), `SELECT pg_switch_wal()::text`)
}

// CreateRestorePoint writes a named restore point into the WAL and returns the
// LSN behind it. Names have at most 63 bytes; of several restore points with
// one name recovery stops at the first. It fails on a standby.
func (s *Server) CreateRestorePoint(ctx context.Context, name string) (LSN, error) {
	return s.lsn(ctx, "create a restore point", s.denied(PrivilegeRestorePoint), `SELECT pg_create_restore_point($1::text)::text`, name)
}
