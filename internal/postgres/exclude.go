package postgres

import "strings"

// OwnTempPrefix begins the names of the agent's own temporary files in a data
// directory.
const OwnTempPrefix = ".agent-"

// tempPrefix begins the names of the server's temporary files and of the
// directories that hold them (PG_TEMP_FILES_DIR and PG_TEMP_FILE_PREFIX in
// src/include/common/file_utils.h).
const tempPrefix = "pgsql_tmp"

// SkipDirContents tells whether all that is in a directory, at any depth,
// stays out of a backup while the directory itself is kept. relDir is relative
// to the data directory, with slashes. The list is excludeDirContents in
// src/backend/backup/basebackup.c (the same in 13 to 18), with pg_wal, whose
// files come from the archive, and directories of temporary files, for which
// SkipFile is true as well.
func SkipDirContents(relDir string) bool {
	if hasTempPart(relDir) {
		return true
	}
	top, _, _ := strings.Cut(relDir, "/")
	switch top {
	case "pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans", "pg_wal":
		return true
	default:
		return false
	}
}

// hasTempPart tells whether any part of a path names a temporary file or a
// directory of such.
func hasTempPart(rel string) bool {
	for part := range strings.SplitSeq(rel, "/") {
		if strings.HasPrefix(part, tempPrefix) {
			return true
		}
	}
	return false
}

// SkipFile tells whether a file or directory stays out of a backup because of
// its path, which is relative to the data directory, with slashes. What lies
// in a directory of which SkipDirContents is true is skipped too. Unlogged
// relations need an UnloggedFilter besides.
//
// The names are excludeFiles and the rules of sendDir in
// src/backend/backup/basebackup.c (the same in 13 to 18; .DS_Store in newer
// minor releases). Ours beyond these: what a recovery of this server left in
// the data directory (*.old and the signal files), and our own temporary files.
func SkipFile(relPath string) bool {
	dir, name, nested := cutLast(relPath)
	if nested && SkipDirContents(dir) || hasTempPart(name) {
		return true
	}
	switch name {
	case "postgresql.auto.conf.tmp", "current_logfiles.tmp", "backup_label", "tablespace_map",
		"backup_manifest", "postmaster.pid", "postmaster.opts", ".DS_Store":
		return true
	case "backup_label.old", "tablespace_map.old", "recovery.signal", "standby.signal":
		return !nested
	}
	if strings.HasPrefix(name, "pg_internal.init") || strings.HasPrefix(name, OwnTempPrefix) {
		return true
	}
	return ClassifyPath(relPath).TempRelation
}

// UnloggedFilter finds the files of unlogged relations in one directory. They
// are reset from the init fork at the end of recovery, so that fork alone is
// backed up (ResetUnloggedRelations in src/backend/storage/file/reinit.c). It
// is read-only once made and may then be used by several goroutines.
type UnloggedFilter struct {
	rels map[uint32]struct{}
}

// NewUnloggedFilter makes the filter of a database's directory from the base
// names of all files in it. The memory it keeps grows with the number of
// unlogged relations only. Shared relations (global/) are never unlogged.
func NewUnloggedFilter(names []string) UnloggedFilter {
	f := UnloggedFilter{rels: map[uint32]struct{}{}}
	for _, name := range names {
		if r, ok := ParseRelFileName(name); ok && r.Fork == InitFork && !r.Temp {
			f.rels[r.Filenode] = struct{}{}
		}
	}
	return f
}

// Skip tells whether the file with this base name belongs to an unlogged
// relation and is not of its init fork.
func (f UnloggedFilter) Skip(name string) bool {
	r, ok := ParseRelFileName(name)
	if !ok || r.Fork == InitFork || r.Temp {
		return false
	}
	_, unlogged := f.rels[r.Filenode]
	return unlogged
}

// RequiredDirs are the directories that a restored data directory must have
// even if the backup has nothing in them or left them out, parents first,
// relative to the data directory, with slashes (subdirs in
// src/bin/initdb/initdb.c).
func RequiredDirs() []string {
	return []string{
		"base",
		"global",
		"pg_commit_ts",
		"pg_dynshmem",
		"pg_logical",
		"pg_logical/mappings",
		"pg_logical/snapshots",
		"pg_multixact",
		"pg_multixact/members",
		"pg_multixact/offsets",
		"pg_notify",
		"pg_replslot",
		"pg_serial",
		"pg_snapshots",
		"pg_stat",
		"pg_stat_tmp",
		"pg_subtrans",
		"pg_tblspc",
		"pg_twophase",
		"pg_wal",
		"pg_wal/archive_status",
		"pg_xact",
	}
}
