// Package postgres holds what the agent knows of PostgreSQL: log sequence
// numbers and WAL file names, WAL page headers, timeline histories, pg_control,
// data pages and their checksums, which files of a data directory belong into
// a backup, backup_label and tablespace_map, and a live server's functions.
//
// What differs between majors 13 to 18 is decided here and nowhere else.
// Everything on disk is read in little-endian order, the native order of the
// supported platforms (x86-64 and arm64).
//
// Values are plain and may be copied; unless a type says otherwise, nothing
// here may be used by several goroutines at once while one of them changes it.
package postgres
