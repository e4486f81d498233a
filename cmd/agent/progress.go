package main

import (
	"fmt"
	"os"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"
)

// progress shows how far a command is: on a terminal one line that is written
// again, in a log a line every few seconds.
type progress struct {
	app      *app
	terminal bool
	last     time.Duration
	shown    bool
}

const progressEvery = 5 * time.Second

func (a *app) progress() *progress {
	f, ok := a.stderr.(*os.File)
	return &progress{app: a, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// update is called about once a second. more is appended as key and value.
func (p *progress) update(phase string, done, total int64, elapsed time.Duration, more ...string) {
	rate := float64(done) / max(elapsed.Seconds(), 0.001)
	eta := ""
	if total > done && rate > 0 {
		eta = time.Duration(float64(total-done) / rate * float64(time.Second)).Round(time.Second).String()
	}
	if p.terminal {
		line := fmt.Sprintf("%s: %s", phase, humanize.IBytes(uint64(done)))
		if total > 0 {
			line += fmt.Sprintf(" of %s (%d%%)", humanize.IBytes(uint64(total)), min(done*100/total, 100))
		}
		line += fmt.Sprintf(", %s/s", humanize.IBytes(uint64(rate)))
		if eta != "" {
			line += ", " + eta + " left"
		}
		for i := 0; i+1 < len(more); i += 2 {
			line += fmt.Sprintf(", %s %s", more[i], more[i+1])
		}
		fmt.Fprintf(p.app.stderr, "\r\x1b[K%s", line)
		p.shown = true
		return
	}
	if elapsed-p.last < progressEvery {
		return
	}
	p.last = elapsed
	attrs := []any{"phase", phase, "done", humanize.IBytes(uint64(done)), "rate", humanize.IBytes(uint64(rate)) + "/s"}
	if total > 0 {
		attrs = append(attrs, "total", humanize.IBytes(uint64(total)))
	}
	if eta != "" {
		attrs = append(attrs, "eta", eta)
	}
	for i := 0; i+1 < len(more); i += 2 {
		attrs = append(attrs, more[i], more[i+1])
	}
	p.app.log.Info("progress", attrs...)
}

// end leaves the terminal on a fresh line.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.app.stderr, "\r\x1b[K")
	}
}
