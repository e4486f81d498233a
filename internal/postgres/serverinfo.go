package postgres

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"agent/internal/errs"
)

// Info is what a server says about itself.
type Info struct {
	VersionNum       int // server_version_num
	Major            int
	Version          string // as the server names it
	Role, Database   string // of this session
	SystemIdentifier uint64
	InRecovery       bool
	Timeline         Timeline
	CatalogVersion   uint32

	// FullPageWrites is the setting on a primary, and on a standby what the
	// primary's setting was at the last restartpoint.
	FullPageWrites bool

	// Paths; empty when the role may not read them (PrivilegeSettings).
	DataDirectory string
	ConfigFile    string
	HBAFile       string
	IdentFile     string

	BackupDenied bool // the role may not execute the backup functions

	WALLevel       string // minimal, replica, logical
	ArchiveMode    string // off, on, always
	Received       bool   // somebody streams WAL from a physical slot, as agent wal-receive does
	ArchiveCommand string // empty when archive_mode is off: the server hides it then
	ArchiveLibrary string // 15 and newer
	SummarizeWAL   bool   // 17 and newer
	WALSegmentSize SegmentSize
	BlockSize      uint32 // bytes
	DataChecksums  bool
	WALLogHints    bool
	Started        time.Time // of the postmaster

	Archiver ArchiverStats
}

// ArchiverStats is pg_stat_archiver. Names and times are empty or zero for
// what never happened. A command that ends with a status above 125 or by a
// signal is not counted as failed.
type ArchiverStats struct {
	ArchivedCount    int64
	LastArchivedWAL  string
	LastArchivedTime time.Time
	FailedCount      int64
	LastFailedWAL    string
	LastFailedTime   time.Time
	StatsReset       time.Time
}

// Info asks the server about itself. The role needs no privilege, but without
// PrivilegeSettings the paths are empty (see RequirePrivileges).
func (s *Server) Info(ctx context.Context) (Info, error) {
	info := Info{VersionNum: s.version, Major: s.Major()}
	var sysid, tli, catver int64
	var fpw bool
	err := s.row(ctx, `SELECT current_setting('server_version'), session_user::text, current_database()::text,
		s.system_identifier, s.catalog_version_no::bigint, pg_is_in_recovery(), c.full_page_writes,
		CASE WHEN pg_is_in_recovery() THEN greatest(c.timeline_id, r.min_recovery_end_timeline)::bigint
		     ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint END
		, pg_postmaster_start_time()
		FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r`, nil,
		&info.Version, &info.Role, &info.Database, &sysid, &catver, &info.InRecovery, &fpw, &tli, &info.Started)
	if err != nil {
		return Info{}, serverError(err, "read the state of the server", "")
	}
	info.SystemIdentifier, info.CatalogVersion, info.Timeline = uint64(sysid), uint32(catver), Timeline(tli)
	settings, err := s.settings(ctx)
	if err != nil {
		return Info{}, err
	}
	if err := info.set(settings); err != nil {
		return Info{}, err
	}
	if info.InRecovery {
		info.FullPageWrites = fpw
	}
	if info.BackupDenied, err = s.backupDenied(ctx); err != nil {
		return Info{}, err
	}
	if err := s.row(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'physical' AND active)`, nil, &info.Received); err != nil {
		return Info{}, serverError(err, "read the replication slots", "")
	}
	info.Archiver, err = s.ArchiverStats(ctx)
	return info, err
}

// backupDenied tells whether the role lacks PrivilegeBackup.
func (s *Server) backupDenied(ctx context.Context) (bool, error) {
	start, stop := "pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"
	if s.Major() < 15 {
		start, stop = "pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"
	}
	var allowed bool
	err := s.row(ctx, `SELECT has_function_privilege('pg_catalog.' || $1::text, 'EXECUTE') AND has_function_privilege('pg_catalog.' || $2::text, 'EXECUTE')`,
		[]any{start, stop}, &allowed)
	return !allowed, serverError(err, "ask for the role's privileges", "")
}

// settings reads the settings that Info shows. Those that the role may not see
// are missing.
func (s *Server) settings(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	err := s.rows(ctx, `SELECT name, setting FROM pg_settings WHERE name IN ('data_directory', 'config_file', 'hba_file', 'ident_file',
		'wal_level', 'archive_mode', 'archive_command', 'archive_library', 'summarize_wal', 'full_page_writes',
		'wal_segment_size', 'block_size', 'data_checksums', 'wal_log_hints') AND setting IS NOT NULL`,
		func(rows pgx.Rows) error {
			var name, setting string
			err := rows.Scan(&name, &setting)
			out[name] = setting
			return err
		})
	return out, serverError(err, "read the settings of the server", "")
}

func (i *Info) set(settings map[string]string) error {
	segment, err := strconv.ParseUint(settings["wal_segment_size"], 10, 32)
	if err != nil || !SegmentSize(segment).Valid() {
		return errs.New(errs.Server, "", "the server has an impossible wal_segment_size %q", settings["wal_segment_size"])
	}
	block, err := strconv.ParseUint(settings["block_size"], 10, 32)
	if err != nil {
		return errs.New(errs.Server, "", "the server has an impossible block_size %q", settings["block_size"])
	}
	i.WALSegmentSize, i.BlockSize = SegmentSize(segment), uint32(block)
	i.DataDirectory = settings["data_directory"]
	i.ConfigFile = settings["config_file"]
	i.HBAFile = settings["hba_file"]
	i.IdentFile = settings["ident_file"]
	i.WALLevel = settings["wal_level"]
	i.ArchiveMode = settings["archive_mode"]
	i.ArchiveLibrary = settings["archive_library"]
	if i.ArchiveMode != "off" {
		i.ArchiveCommand = settings["archive_command"]
	}
	i.SummarizeWAL = settings["summarize_wal"] == "on"
	i.FullPageWrites = settings["full_page_writes"] == "on"
	i.DataChecksums = settings["data_checksums"] == "on"
	i.WALLogHints = settings["wal_log_hints"] == "on"
	return nil
}

// ArchiverStats reads pg_stat_archiver.
func (s *Server) ArchiverStats(ctx context.Context) (ArchiverStats, error) {
	var a ArchiverStats
	var archived, failed, reset *time.Time
	err := s.row(ctx, `SELECT archived_count, coalesce(last_archived_wal, ''), last_archived_time,
		failed_count, coalesce(last_failed_wal, ''), last_failed_time, stats_reset FROM pg_stat_archiver`, nil,
		&a.ArchivedCount, &a.LastArchivedWAL, &archived, &a.FailedCount, &a.LastFailedWAL, &failed, &reset)
	if err != nil {
		return ArchiverStats{}, serverError(err, "read pg_stat_archiver", "")
	}
	a.LastArchivedTime, a.LastFailedTime, a.StatsReset = utc(archived), utc(failed), utc(reset)
	return a, nil
}

func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// InsertLSN is how far WAL reaches now: on a primary the insert position, on a
// standby the newest position that was received or replayed. No page in the
// data directory has a higher LSN.
func (s *Server) InsertLSN(ctx context.Context) (LSN, error) {
	return s.lsn(ctx, "read the WAL insert position", "", `SELECT CASE WHEN pg_is_in_recovery()
		THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_insert_lsn() END::text`)
}

// lsn runs a query that gives one LSN as text.
func (s *Server) lsn(ctx context.Context, what, denied, sql string, args ...any) (LSN, error) {
	var text string
	if err := s.row(ctx, sql, args, &text); err != nil {
		return 0, serverError(err, what, denied)
	}
	l, err := ParseLSN(text)
	return l, errs.Wrap(err, errs.Server, "", "%s", what)
}

// Tablespaces lists the tablespaces other than the two that every cluster has,
// by OID.
func (s *Server) Tablespaces(ctx context.Context) ([]Tablespace, error) {
	var out []Tablespace
	err := s.rows(ctx, `SELECT oid::bigint, pg_tablespace_location(oid) FROM pg_tablespace
		WHERE oid NOT IN (1663, 1664) ORDER BY oid`,
		func(rows pgx.Rows) error {
			var oid int64
			var t Tablespace
			err := rows.Scan(&oid, &t.Location)
			t.OID = uint32(oid)
			out = append(out, t)
			return err
		})
	return out, serverError(err, "list tablespaces", "")
}
