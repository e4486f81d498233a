package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"agent/internal/postgres"
	"agent/testing/harness"
)

// ahead is the data directory of a server that another process works for.
type ahead struct {
	t                 *testing.T
	data, repo, state string
	names             []string // of segments in plain
	plain             string
	env               []string
}

// testFile is a file of PostgreSQL 15.
func testFile(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(segments, "pg15", name+".zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	body, err := io.ReadAll(dec)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func newAhead(t *testing.T, count int) *ahead {
	t.Helper()
	dir := t.TempDir()
	a := &ahead{
		t: t, data: filepath.Join(dir, "data"), repo: filepath.Join(dir, "repo"), state: filepath.Join(dir, "state"), plain: filepath.Join(dir, "plain"),
	}
	a.env = []string{"HOME=" + dir, "AGENT_REPOSITORY=" + a.repo, "AGENT_STATE_DIR=" + a.state, "GODEBUG=inittrace=1"}
	a.write("data/global/pg_control", testFile(t, "pg_control"))
	a.write("data/postmaster.pid", fmt.Appendf(nil, "%d\n", os.Getpid()))
	a.write("data/pg_wal/archive_status/x", nil)
	body := testFile(t, "00000001000000000000000B")
	for i := range count {
		seg := postgres.Segment{Timeline: 1, Number: uint64(100 + i)}
		for page := 0; page < len(body); page += postgres.WALBlockSize {
			if binary.LittleEndian.Uint16(body[page:]) != 0 {
				binary.LittleEndian.PutUint64(body[page+8:], uint64(seg.Start(1<<20))+uint64(page))
			}
		}
		a.names = append(a.names, seg.Name(1<<20))
		a.write("plain/"+seg.Name(1<<20), body)
	}
	a.run(a.env, "repo", "init")
	return a
}

func (a *ahead) write(rel string, body []byte) {
	a.t.Helper()
	path := filepath.Join(filepath.Dir(a.data), rel)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, body, 0o600)); err != nil {
		a.t.Fatal(err)
	}
}

// outcome is that of a call.
type outcome struct {
	code int
	said string // without what differs from call to call
	late bool   // the libraries were initialised
}

var changing = regexp.MustCompile(`[0-9A-F]{24}|time=\S+|[0-9]+`)

func (a *ahead) run(env []string, args ...string) outcome {
	a.t.Helper()
	cmd := exec.CommandContext(a.t.Context(), harness.AgentBinary(a.t), args...)
	cmd.Dir, cmd.Env = a.data, env
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		a.t.Fatal(err)
	}
	o := outcome{code: cmd.ProcessState.ExitCode()}
	for line := range strings.Lines(said.String()) {
		if strings.Contains(line, "a record in it is damaged") {
			continue // it was at another address
		}
		if !strings.HasPrefix(line, "init ") {
			o.said += changing.ReplaceAllString(line, "N")
			continue
		}
		for _, heavy := range []string{"net/http ", "crypto/", "encoding/json ", "aws-sdk-go-v2/service", "google.golang.org/protobuf/types"} {
			o.late = o.late || strings.Contains(line, heavy) && !strings.Contains(line, "fips140deps")
		}
	}
	return o
}

// listening waits until a process answers the calls for this directory.
func (a *ahead) listening() {
	a.t.Helper()
	for !a.answered() {
		select {
		case <-a.t.Context().Done():
			a.t.Fatal("nobody answers")
		case <-time.After(time.Millisecond):
		}
	}
}

func (a *ahead) answered() bool {
	a.t.Helper()
	open, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		a.t.Fatal(err)
	}
	running, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		a.t.Fatal(err)
	}
	for _, path := range running {
		line, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(line, []byte(a.data)) {
			continue // it has ended, or is another one
		}
		for arg := range bytes.SplitSeq(line, []byte{0}) {
			if bytes.HasPrefix(arg, []byte("agent-wal-")) && bytes.Contains(open, append([]byte{'@'}, arg...)) {
				return true
			}
		}
	}
	return false
}

// TestEarlyPush compares what the process that archives a backlog answers with
// what the call itself does, which has another environment, so that nobody
// answers for it.
func TestEarlyPush(t *testing.T) {
	// The calls archive sixteen files behind their own, but not the last one.
	a := newAhead(t, 40)
	looked := func() string {
		found, err := filepath.Glob(filepath.Join(a.state, "backlog", "*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%q, %v", found, err)
		}
		return found[0]
	}
	record := func(name string) string {
		found, err := filepath.Glob(filepath.Join(a.state, "archived", "*", name))
		if err != nil || len(found) > 1 {
			t.Fatalf("%q, %v", found, err)
		}
		return strings.Join(found, "")
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range a.names {
		must(os.Rename(filepath.Join(a.plain, name), filepath.Join(a.data, "pg_wal", name)))
		if i > 0 {
			a.write("data/pg_wal/archive_status/"+name+".ready", nil)
		}
	}
	// The last one keeps the process at work: to open it waits for somebody who
	// writes.
	fifo := filepath.Join(a.data, "pg_wal", a.names[len(a.names)-1])
	must(os.Remove(fifo), syscall.Mkfifo(fifo, 0o600))
	if o := a.run(a.env, "wal-push", "pg_wal/"+a.names[0]); o.code != 0 || o.said != "" {
		t.Fatalf("the first call: %+v", o)
	}
	a.listening()
	for _, name := range a.names[len(a.names)-4 : len(a.names)-1] { // until it has them, and so all
		if o := a.run(a.env, "wal-push", "pg_wal/"+name); o.code != 0 {
			t.Fatalf("%+v", o)
		}
	}
	defer func() { // then the process ends: this is no regular file
		f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		must(err)
		f.Close()
	}()
	moved := filepath.Join(filepath.Dir(a.repo), "moved")
	hour := time.Now().Add(-2 * time.Hour)
	scenarios := []struct {
		name         string
		early        bool
		code         int
		said         string // in what both say; "": they say nothing
		change, undo func(name string)
	}{
		{name: "archived", early: true},
		{
			name: "another file", said: "archived already with the same bytes",
			change: func(name string) { must(os.Chtimes(filepath.Join(a.data, "pg_wal", name), hour, hour)) },
		},
		{
			name: "no record", said: "archived already with the same bytes",
			change: func(name string) { must(os.Remove(record(name))) },
		},
		{
			name: "an empty mount point", code: 1, said: "hint",
			change: func(string) { must(os.Rename(a.repo, moved), os.Mkdir(a.repo, 0o700)) },
			undo:   func(string) { must(os.Remove(a.repo), os.Rename(moved, a.repo)) },
		},
		{
			name:   "no data directory",
			change: func(string) { must(os.Rename(a.data+"/global", a.data+"/away")) },
			undo:   func(string) { must(os.Rename(a.data+"/away", a.data+"/global")) },
		},
		{
			name: "a backlog that is to be told", said: "archiving falls behind",
			change: func(string) {
				mark := filepath.Join(a.data, "pg_wal", "archive_status", a.names[len(a.names)-1]+".ready")
				must(os.Chtimes(looked(), hour, hour), os.Chtimes(mark, hour, hour))
			},
		},
		{name: "archived, and a backlog that was told", early: true},
	}
	next := 1
	for _, s := range scenarios {
		var all []outcome
		for _, env := range [][]string{a.env, append(slices.Clone(a.env), "X=y")} {
			name := a.names[next]
			next++
			if s.change != nil {
				s.change(name)
			}
			all = append(all, a.run(env, "wal-push", "pg_wal/"+name))
			if s.undo != nil {
				s.undo(name)
			}
			if left := record(name); left != "" {
				t.Errorf("%s: the record is left", s.name)
			}
		}
		with, without := all[0], all[1]
		if with.code != without.code || with.said != without.said {
			t.Errorf("%s: %+v, but by itself %+v", s.name, with, without)
		}
		if with.code != s.code || (with.said == "") != (s.said == "") || !strings.Contains(with.said, s.said) {
			t.Errorf("%s: %+v", s.name, with)
		}
		if with.late == s.early || !without.late {
			t.Errorf("%s: libraries were initialised: %v, %v", s.name, with.late, without.late)
		}
	}
}

// TestEarlyFetch recovers with segments that are fetched ahead.
func TestEarlyFetch(t *testing.T) {
	a := newAhead(t, 8)
	for _, name := range a.names {
		if o := a.run(a.env, "wal-push", "--system-identifier", "7710217270864087352", filepath.Join(a.plain, name)); o.code != 0 {
			t.Fatalf("%+v", o)
		}
	}
	a.write("data/recovery.signal", nil)
	fetch := func(env []string, name string) (outcome, []byte) {
		t.Helper()
		const dest = "pg_wal/RECOVERYXLOG"
		o := a.run(env, "wal-fetch", name, dest)
		body, err := os.ReadFile(filepath.Join(a.data, dest))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err == nil {
			err = os.Remove(filepath.Join(a.data, dest))
		}
		if err != nil && o.code == 0 {
			t.Fatal(err)
		}
		return o, body
	}
	for i, name := range a.names {
		env := a.env
		if i == 4 { // as if it was another server's
			env = append(slices.Clone(a.env), "X=y")
		}
		o, body := fetch(env, name)
		want, err := os.ReadFile(filepath.Join(a.plain, name))
		if err != nil {
			t.Fatal(err)
		}
		if o.code != 0 || o.said != "" || !bytes.Equal(body, want) {
			t.Errorf("%d: %d bytes, %+v", i, len(body), o)
		}
		if late := i == 0 || i == 4; o.late != late {
			t.Errorf("%d: libraries were initialised: %v", i, o.late)
		}
		if i == 0 {
			a.listening()
		}
	}
	next := postgres.Segment{Timeline: 1, Number: uint64(100 + len(a.names))}
	if o, _ := fetch(a.env, next.Name(1<<20)); o.code != exitNotFound || !o.late {
		t.Errorf("what does not exist: %+v", o)
	}
}
