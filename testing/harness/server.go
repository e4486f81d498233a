package harness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	startLimit = 3 * time.Minute  // until a server, perhaps in recovery, takes connections
	stopLimit  = 2 * time.Minute  // fast stop: until the last segments are archived
	killLimit  = 30 * time.Second // immediate stop
	pollEvery  = 25 * time.Millisecond
	logTail    = 60 // lines
)

// Options says what server to make. The zero value is a running PostgreSQL 15
// with page checksums and fsync.
type Options struct {
	Major        int               // one of Majors; 0 is DefaultMajor
	NoChecksums  bool              // make the cluster without page checksums
	NoFsync      bool              // do not wait for the disk: faster, for tests that do not crash
	Conf         map[string]string // settings for postgresql.conf, values without quotes
	WALSegSizeMB int               // MiB, a power of two from 1 to 1024; 0 is PostgreSQL's 16
	DataDir      string            // where to make the cluster; empty is a folder of the test
	InitOnly     bool              // make the cluster, do not start it; Restart does
	Env          []string          // more environment ("KEY=value") for the server and its commands
}

// Server is one PostgreSQL server and its data directory.
type Server struct {
	DataDir   string
	SocketDir string // holds the Unix socket
	Port      int    // TCP port on 127.0.0.1; the same over restarts
	Major     int

	t    testing.TB
	base string // the test's folder for log and socket
	env  []string
	conf map[string]string // settings that win over postgresql.conf
	proc *process          // nil until started
}

// Start makes a cluster with initdb and starts it. Superuser and database are
// both called postgres, and every connection is trusted.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := newServer(t, o.DataDir, o.Major, nil, o.Env)
	if err != nil {
		t.Fatal(err)
	}
	s.initdb(o)
	s.AppendConf(t, map[string]string{
		// Small, since many servers run side by side.
		"shared_buffers":  "32MB",
		"max_connections": "40",
		"jit":             "off",
	})
	if o.NoFsync {
		s.AppendConf(t, map[string]string{"fsync": "off"})
	}
	s.AppendConf(t, o.Conf)
	if !o.InitOnly {
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// StartExisting starts a server on a directory that exists, such as a restored
// one, and returns once it takes connections, which it may do before recovery
// has ended: see WaitRecovered. The settings of conf win over those in the
// directory's files, which stay as they are. Major 0 is DefaultMajor; env is
// more environment for the server and its commands.
func StartExisting(t testing.TB, dataDir string, major int, conf map[string]string, env ...string) *Server {
	t.Helper()
	s, err := TryStart(t, dataDir, major, conf, env...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TryStart is StartExisting for a server that may refuse: if it ends before it
// takes connections, the error holds the end of its log.
func TryStart(t testing.TB, dataDir string, major int, conf map[string]string, env ...string) (*Server, error) {
	t.Helper()
	s, err := newServer(t, dataDir, major, conf, env)
	if err != nil {
		return nil, err
	}
	if err := s.start(); err != nil {
		return nil, err
	}
	return s, nil
}

// newServer prepares the folders of a server and what happens to them in the end.
func newServer(t testing.TB, dataDir string, major int, conf map[string]string, env []string) (*Server, error) {
	t.Helper()
	if major == 0 {
		major = DefaultMajor
	}
	if _, err := findProgram(major, "postgres"); err != nil {
		return nil, err
	}
	s := &Server{DataDir: dataDir, Major: major, t: t, base: TempDir(t), env: env, conf: maps.Clone(conf)}
	if dataDir == "" {
		s.DataDir = filepath.Join(s.base, "data")
	}
	s.SocketDir = filepath.Join(s.base, "s")
	if err := os.Mkdir(s.SocketDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's folder: %w", err)
	}
	Own(t, s.SocketDir)
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s.Port = port
	t.Cleanup(s.cleanup)
	return s, nil
}

// cleanup ends the server at once: its data is thrown away, and a fast stop
// could wait for ever for an archive_command of the test.
func (s *Server) cleanup() {
	if s.Running() && !s.proc.stop(syscall.SIGQUIT, killLimit) {
		s.t.Errorf("the server on port %d did not stop and was killed", s.Port)
	}
	for _, p := range killWithin(s.DataDir) {
		s.t.Logf("killed a process left behind by the server: %s", p)
	}
	if s.t.Failed() {
		s.t.Logf("end of the log of PostgreSQL %d on port %d:\n%s", s.Major, s.Port, s.tail())
	}
}

// initdb makes the cluster.
func (s *Server) initdb(o Options) {
	t := s.t
	t.Helper()
	args := []string{"-D", s.DataDir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"}
	switch {
	case !o.NoChecksums:
		args = append(args, "--data-checksums")
	case s.Major >= 18: // checksums became the default
		args = append(args, "--no-data-checksums")
	}
	if o.WALSegSizeMB != 0 {
		args = append(args, "--wal-segsize="+strconv.Itoa(o.WALSegSizeMB))
	}
	path, err := findProgram(s.Major, "initdb")
	if err != nil {
		t.Fatal(err)
	}
	out, err := Command(t.Context(), t, s.base, nil, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
}

// AppendConf adds settings to the end of postgresql.conf, where they win over
// earlier ones; values are given without quotes. A running server sees them
// after a reload or a restart.
func (s *Server) AppendConf(t testing.TB, conf map[string]string) {
	t.Helper()
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(conf)) {
		fmt.Fprintf(&text, "%s = '%s'\n", key, strings.ReplaceAll(conf[key], "'", "''"))
	}
	f, err := os.OpenFile(filepath.Join(s.DataDir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatalf("open the settings: %v", err)
	}
	_, err = f.WriteString(text.String())
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatalf("write the settings: %v", err)
	}
}

// start starts the server and waits until it takes connections. Another
// process may take the port between its choice and its use; then another one
// is chosen, unless the server ran before and clients know its port.
func (s *Server) start() error {
	first := s.proc == nil
	for attempt := 1; ; attempt++ {
		before := len(s.Log())
		err := s.launch()
		if err == nil {
			return nil
		}
		taken := strings.Contains(s.Log()[before:], "Address already in use")
		if !taken || !first || attempt == 10 {
			return fmt.Errorf("start PostgreSQL %d on %s: %w", s.Major, s.DataDir, err)
		}
		port, err := freePort()
		if err != nil {
			return err
		}
		s.Port = port
	}
}

// launch starts the server once.
func (s *Server) launch() error {
	path, err := findProgram(s.Major, "postgres")
	if err != nil {
		return err
	}
	cred, err := credential()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer func() { _ = log.Close() }() // the server has its own handle, nothing was written by this one
	// Not the test's context: it ends before the clean-up that stops the server.
	cmd := exec.CommandContext(context.Background(), path, s.args()...)
	prepare(cmd, cred, s.base, s.env)
	cmd.Stdout, cmd.Stderr = log, log
	if s.proc, err = spawn(cmd); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return s.ready()
}

// args are the server's arguments. Only what belongs to this run is set here,
// since a setting on the command line cannot be changed by ALTER SYSTEM.
func (s *Server) args() []string {
	conf := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(s.Port),
		"unix_socket_directories": s.SocketDir,
		"logging_collector":       "off",
		"log_destination":         "stderr",
	}
	maps.Copy(conf, s.conf)
	args := []string{"-D", s.DataDir}
	for _, key := range slices.Sorted(maps.Keys(conf)) {
		args = append(args, "-c", key+"="+conf[key])
	}
	return args
}

// ready waits until the server takes connections or has ended. It asks over the
// Unix socket: what answers on the port may be another server.
func (s *Server) ready() error {
	ctx, cancel := context.WithTimeout(s.t.Context(), startLimit)
	defer cancel()
	return s.poll(ctx, func() (bool, error) {
		conn, err := pgx.Connect(ctx, s.socketInfo())
		if err != nil {
			return false, err
		}
		return true, conn.Close(ctx)
	})
}

// poll asks until done says yes, the server ends or ctx does. An error of done
// means "not yet"; the last one is told when the time is up.
func (s *Server) poll(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok && err == nil {
			return nil
		}
		select {
		case <-s.proc.exited:
			return fmt.Errorf("the server stopped (status %d), end of its log:\n%s", exitCode(s.proc.cmd.ProcessState), s.tail())
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready (%w; last answer: %w), end of its log:\n%s", ctx.Err(), err, s.tail())
		case <-tick.C:
		}
	}
}

// freePort returns a TCP port on which nothing listens now.
func freePort() (int, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil {
		return 0, fmt.Errorf("release the port: %w", err)
	}
	if !ok {
		return 0, fmt.Errorf("find a free port: %v is not a TCP address", l.Addr())
	}
	return addr.Port, nil
}
