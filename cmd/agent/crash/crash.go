// Package crash sees to it that no crash of wal-fetch looks like an answer.
//
// The Go runtime ends with status 2 then, which restore_command means as "no
// more WAL": PostgreSQL would open the database with transactions missing. It
// dies by SIGABRT instead. Imported for its init, which comes before those of
// most libraries (see package early), so that a crash of one of them is covered.
package crash

import (
	"os"
	"runtime/debug"
	"slices"

	"agent/cmd/agent/early"
)

func init() {
	if !slices.Contains(os.Args[1:], early.Push) {
		debug.SetTraceback("crash")
	}
}
