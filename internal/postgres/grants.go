package postgres

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Privilege is something that the agent asks of the server and that a role
// other than a superuser has to be granted.
type Privilege uint8

// The privileges.
const (
	PrivilegeSettings     Privilege = iota // read data_directory and other paths
	PrivilegeBackup                        // start and stop a backup
	PrivilegeSwitchWAL                     // pg_switch_wal
	PrivilegeRestorePoint                  // pg_create_restore_point
)

// Grants are the statements that give role the privileges on a server of this
// major, to be run by a superuser in the database that the agent connects to:
// functions belong to one database.
func Grants(major int, role string, privileges ...Privilege) []string {
	to := " TO " + pgx.Identifier{role}.Sanitize()
	var out []string
	execute := func(functions ...string) {
		for _, f := range functions {
			out = append(out, "GRANT EXECUTE ON FUNCTION pg_catalog."+f+to)
		}
	}
	for _, p := range privileges {
		switch {
		case p == PrivilegeSettings:
			out = append(out, "GRANT pg_read_all_settings"+to)
		case p == PrivilegeBackup && major < 15:
			execute("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)")
		case p == PrivilegeBackup:
			execute("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)")
		case p == PrivilegeSwitchWAL:
			execute("pg_switch_wal()")
		case p == PrivilegeRestorePoint:
			execute("pg_create_restore_point(text)")
		}
	}
	return out
}

// grantHint tells a user what to run where.
func grantHint(major int, role, database string, privileges ...Privilege) string {
	return fmt.Sprintf("As a superuser run in database %q: %s;", database, strings.Join(Grants(major, role, privileges...), "; "))
}

// denied is the hint for a privilege that this session's role lacks.
func (s *Server) denied(privileges ...Privilege) string {
	config := s.conn.Config()
	database := config.Database
	if database == "" {
		database = config.User
	}
	return grantHint(s.Major(), config.User, database, privileges...)
}
