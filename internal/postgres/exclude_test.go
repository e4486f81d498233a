package postgres

import (
	"path"
	"slices"
	"testing"
)

func TestSkipDirContents(t *testing.T) {
	for _, dir := range []string{
		"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans", "pg_wal",
		"pg_wal/archive_status", "pg_wal/summaries", "pg_replslot/slot", "base/pgsql_tmp", "base/pgsql_tmp/pgsql_tmp1.0.fileset", "pg_tblspc/9/PG_15_202209061/pgsql_tmp",
	} {
		if !SkipDirContents(dir) {
			t.Errorf("%s is kept", dir)
		}
	}
	for _, dir := range []string{
		"", "base", "base/5", "global", "pg_logical", "pg_logical/snapshots", "pg_multixact", "pg_twophase", "pg_xact", "pg_commit_ts", "pg_stat",
		"pg_tblspc", "pg_tblspc/9", "my_ext", "my_ext/pg_wal", "pg_waldo", "log",
	} {
		if SkipDirContents(dir) {
			t.Errorf("%s is skipped", dir)
		}
	}
}

func TestSkipFile(t *testing.T) {
	for _, name := range []string{
		"postgresql.auto.conf.tmp", "current_logfiles.tmp", "backup_label", "tablespace_map", "backup_manifest", "postmaster.pid", "postmaster.opts",
		"backup_label.old", "tablespace_map.old", "recovery.signal", "standby.signal", ".DS_Store", "base/.DS_Store", "base/5/postmaster.pid",
		"base/5/pg_internal.init", "base/5/pg_internal.init.123", "global/pg_internal.init", "base/pgsql_tmp", "base/pgsql_tmp/pgsql_tmp12.3",
		"base/pgsql_tmp/pgsql_tmp12.0.fileset/0.0", "pg_tblspc/9/PG_15_202209061/pgsql_tmp", "pgsql_tmp1", "base/5/t3_16384", "base/5/t3_16384_fsm.1",
		"pg_tblspc/9/PG_15_202209061/5/t3_16384", "pg_wal/000000010000000000000001", "pg_wal/archive_status/x.done", "pg_stat_tmp/global.stat",
		"pg_replslot/slot/state", "pg_notify/0000", ".agent-x", "base/5/.agent-16384", "global/.agent-pg_control",
	} {
		if !SkipFile(name) {
			t.Errorf("%s is kept", name)
		}
	}
	for _, name := range []string{
		"", "PG_VERSION", "postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf", "global/pg_control", "global/1260", "global/t3_16384",
		"base/5/1259", "base/5/16384_init", "base/5/pg_filenode.map", "base/5/PG_VERSION", "pg_xact/0000", "pg_multixact/members/0000", "pg_logical/replorigin_checkpoint",
		"pg_stat/pgstat.stat", "my_ext/t3_16384", "my_ext/recovery.signal", "my_ext/backup_label.old", "pg_twophase/00000301", "current_logfiles", "pg_wal", "pg_notify",
		"backup_label.new", "x.agent-1", "t3_16384",
	} {
		if SkipFile(name) {
			t.Errorf("%s is skipped", name)
		}
	}
}

func TestUnloggedFilter(t *testing.T) {
	names := []string{"16384", "16384.1", "16384_init", "16384_fsm", "16384_vm", "16384_vm.1", "16385", "16385_fsm", "163840", "t3_16384", "t3_16385_init", "PG_VERSION", "16386_init"}
	f := NewUnloggedFilter(names)
	var skipped []string
	for _, name := range names {
		if f.Skip(name) {
			skipped = append(skipped, name)
		}
	}
	if want := []string{"16384", "16384.1", "16384_fsm", "16384_vm", "16384_vm.1"}; !slices.Equal(skipped, want) {
		t.Errorf("%v, want %v", skipped, want)
	}
	if (UnloggedFilter{}).Skip("16384") {
		t.Error("the zero filter skips")
	}
}

func TestRequiredDirs(t *testing.T) {
	dirs := RequiredDirs()
	for i, dir := range dirs {
		if parent := path.Dir(dir); parent != "." && !slices.Contains(dirs[:i], parent) {
			t.Errorf("%s comes before its parent", dir)
		}
	}
	for _, dir := range []string{"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans", "pg_wal"} {
		if !slices.Contains(dirs, dir) {
			t.Errorf("%s would be missing", dir)
		}
	}
	dirs[0] = "changed"
	if RequiredDirs()[0] == "changed" {
		t.Error("callers share the list")
	}
}
