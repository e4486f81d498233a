// Package early answers the calls of PostgreSQL whose work a process beside it
// has done already, before the rest of the program is initialised, which costs
// several times as much as such a call.
//
// PostgreSQL runs one archive_command or restore_command for each segment, one
// after the other, so that what a call costs bounds how fast a backlog is
// archived and a standby catches up. Go initialises packages in the order of
// their import paths, each as soon as what it imports is (the Go specification,
// "Program initialization"). The path of this package comes before those of all
// libraries, and it imports only what is initialised early, so that its init runs
// before theirs, and can end the process.
//
// It knows nothing of configuration, stores and WAL. It asks the process that
// was started by a call just like this one, which has all of that in memory and
// decides. Unless the answer is yes the command runs as ever.
package early

import (
	"os"
	"time"
)

// waited is what the question has cost a call that goes on.
var waited time.Duration

func init() {
	began := time.Now()
	if code, answered := Answer(os.Args[1:], os.Getenv); answered {
		os.Exit(code)
	}
	waited = time.Since(began)
}

// Waited is how long this process has waited in vain for an answer, before its
// command began.
func Waited() time.Duration { return waited }

// Answer is the exit status of a call with these arguments, if it is one of
// PostgreSQL's whose work is done already.
func Answer(args []string, getenv func(string) string) (code int, answered bool) {
	// A crash of the Go runtime ends with status 2, which restore_command means as
	// "no more WAL" (package crash comes later than this).
	defer func() {
		if recover() != nil {
			code, answered = 0, false
		}
	}()
	c, ok := Find(args)
	if !ok {
		return 0, false
	}
	name, err := c.Name(getenv)
	if err != nil {
		return 0, false // the command says what is wrong
	}
	if c.Command == Push {
		return push(name, c.File)
	}
	return 0, ask(name, `{"segment":"`+c.File+`"}`, fetchPatience)
}
