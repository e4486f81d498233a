package check

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"agent/internal/errs"
)

// Report is what all checks found, in the order of Names, those of each
// repository together.
type Report struct{ Checks []Check }

// Status is Failed if a check failed, else Warning if one warned, else OK.
func (r Report) Status() Status {
	switch {
	case r.count(Failed) > 0:
		return Failed
	case r.count(Warning) > 0:
		return Warning
	default:
		return OK
	}
}

func (r Report) count(s Status) (n int) {
	for _, c := range r.Checks {
		if c.Status == s {
			n++
		}
	}
	return n
}

// first is the first check with the status.
func (r Report) first(s Status) (Check, bool) {
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.Status == s })
	if i < 0 {
		return Check{}, false
	}
	return r.Checks[i], true
}

// Err is nil unless a check failed. Its kind, which decides the exit status,
// and its hint are those of the first that did.
func (r Report) Err() error {
	c, failed := r.first(Failed)
	if !failed {
		return nil
	}
	more := ""
	if n := r.count(Failed); n > 1 {
		more = fmt.Sprintf("; %d checks failed in all", n)
	}
	return errs.New(c.Kind, c.Hint, "%s: %s%s", c.title(), c.Text, more)
}

// title is the name, and the repository that it is about.
func (c Check) title() string {
	if c.Repository == "" {
		return string(c.Name)
	}
	return string(c.Name) + " " + c.Repository
}

// Text writes a line for each check, and one for its hint, and how many of
// each status there were.
func (r Report) Text(w io.Writer) error {
	width := 0
	for _, c := range r.Checks {
		width = max(width, len(c.title()))
	}
	var b strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-7s  %-*s  %s\n", c.Status, width, c.title(), c.Text)
		if c.Hint != "" {
			fmt.Fprintf(&b, "%-7s  %-*s  hint: %s\n", "", width, "", c.Hint)
		}
	}
	fmt.Fprintf(&b, "%s\n", r.summary())
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// summary reads "21 ok, 1 warning, 2 failed, 3 skipped".
func (r Report) summary() string {
	text := fmt.Sprintf("%d ok", r.count(OK))
	for _, s := range []struct {
		status      Status
		one, plural string
	}{{Warning, "warning", "warnings"}, {Failed, "failed", "failed"}, {Skipped, "skipped", "skipped"}} {
		switch n := r.count(s.status); n {
		case 0:
		case 1:
			text += ", 1 " + s.one
		default:
			text += fmt.Sprintf(", %d %s", n, s.plural)
		}
	}
	return text
}

// MarshalJSON writes the name, what was found, and the facts beside them.
func (c Check) MarshalJSON() ([]byte, error) {
	all := map[string]any{"name": c.Name, "status": c.Status, "text": c.Text}
	if c.Repository != "" {
		all["repository"] = c.Repository
	}
	if c.Hint != "" {
		all["hint"] = c.Hint
	}
	for name, value := range c.Facts {
		if t, ok := value.(time.Time); ok {
			value = t.UTC().Truncate(time.Millisecond)
		}
		all[string(name)] = value
	}
	b, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encode check %s: %w", c.Name, err)
	}
	return b, nil
}

// JSON writes the report as docs/json.md says.
func (r Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	checks := r.Checks
	if checks == nil {
		checks = []Check{}
	}
	err := e.Encode(struct {
		Checks []Check `json:"checks"`
		Status Status  `json:"status"`
	}{checks, r.Status()})
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// The states of a monitoring plugin, which are its exit statuses too (Monitoring
// Plugins Development Guidelines, "Plugin Return Codes").
const (
	NagiosOK       = 0
	NagiosWarning  = 1
	NagiosCritical = 2
	NagiosUnknown  = 3
)

// Nagios is the report as one line of a monitoring plugin, without a line end,
// and the plugin's exit status. A configuration that cannot be read leaves the
// state unknown: that is often only the plugin's own user.
func (r Report) Nagios() (line string, status int) {
	word, shown := "OK", ""
	switch r.Status() {
	case Failed:
		word, status = "CRITICAL", NagiosCritical
		c, _ := r.first(Failed)
		if c.Name == Config {
			word, status = "UNKNOWN", NagiosUnknown
		}
		shown = c.title() + ": " + c.Text + "; "
	case Warning:
		word, status = "WARNING", NagiosWarning
		c, _ := r.first(Warning)
		shown = c.title() + ": " + c.Text + "; "
	}
	// A bar would begin the performance data.
	text := strings.ReplaceAll(oneLine(shown+r.summary()), "|", "/")
	return fmt.Sprintf("AGENT %s - %s|%s", word, text, r.performance()), status
}

// performance is the performance data: 'label'=value[unit];[warn];[crit]
// (Monitoring Plugins Development Guidelines, "Performance data"). A range
// "N:" alerts below N.
func (r Report) performance() string {
	below := fmt.Sprintf(";%d:;%d:", int64(spaceWarning), int64(spaceFailed))
	units := map[Fact]struct{ label, unit, limits string }{
		PutMS:          {"put", "ms", ""},
		GetMS:          {"get", "ms", ""},
		SkewSeconds:    {"skew", "s", fmt.Sprintf(";%[1]d:%[2]d;%[3]d:%[4]d", -skewWarning, skewWarning, -skewFailed, skewFailed)},
		FreeBytes:      {"free", "B", below},
		Objects:        {"behind", "", ""},
		ElapsedSeconds: {"arrival", "s", ""},
		Waiting:        {"waiting", "", ""},
		WaitingBytes:   {"waiting_bytes", "B", ""},
		OldestSeconds:  {"waiting_oldest", "s", ""},
		FullInSeconds:  {"full_in", "s", ""},
	}
	var all []string
	for _, c := range r.Checks {
		if c.Name == RepositoryLeftovers {
			continue
		}
		for _, f := range slices.Sorted(maps.Keys(c.Facts)) {
			u, ok := units[f]
			if !ok || c.Name == ArchivingBacklog && f == Waiting { // server.archiver has told it
				continue
			}
			label := u.label
			switch {
			case c.Name == ArchivingBacklog && f == FreeBytes:
				label, u.limits = "pg_wal_free", ""
			case c.Repository != "":
				label = c.Repository + "_" + label
			case f == FreeBytes:
				label = "state_" + label
			}
			all = append(all, fmt.Sprintf("'%s'=%v%s%s", label, c.Facts[f], u.unit, u.limits))
		}
	}
	return strings.Join(all, " ")
}

func bytesText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
