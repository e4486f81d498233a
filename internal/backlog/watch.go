package backlog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// lookEvery is how often a Watch looks: archive_command runs many times in a
// second, and its log is the server's.
const lookEvery = time.Minute

// Watch tells the log of a backlog, from within archive_command.
type Watch struct {
	StateDir string // where the last look is remembered
	Log      *slog.Logger
	Now      func() time.Time
}

// Tell looks at the pg_wal of a file that is being archived, at most once a
// minute on this host, and logs a warning or an error with the numbers if they
// are bad. It never fails: whatever goes wrong here must not keep WAL from being
// archived.
func (w Watch) Tell(ctx context.Context, walFile string) {
	pgWAL := filepath.Dir(walFile)
	if !w.Due(walFile) {
		return
	}
	w.remember(pgWAL)
	b, err := Look(pgWAL, w.Now())
	if errors.Is(err, fs.ErrNotExist) {
		return // not a server's pg_wal
	}
	if err != nil {
		w.Log.Debug("look at the backlog", "error", err.Error())
		return
	}
	level, reasons := b.Level()
	if level == OK {
		return
	}
	at := slog.LevelWarn
	if level == Critical {
		at = slog.LevelError
	}
	attrs := []any{
		"reason", strings.Join(reasons, "; "), "waiting", b.Files, "waiting_bytes", b.Bytes, "oldest_seconds", int64(b.Age().Seconds()),
		"made_per_second", int64(b.Made), "archived_per_second", int64(b.Archived), "free_bytes", b.Free,
	}
	if full, ok := b.FullIn(); ok {
		attrs = append(attrs, "full_in_seconds", int64(full.Seconds()))
	}
	w.Log.Log(ctx, at, "archiving falls behind", attrs...)
}

// absolute is the path of a pg_wal that the server gives relative to its data
// directory, in which it runs its commands.
func absolute(pgWAL string) string {
	if abs, err := filepath.Abs(pgWAL); err == nil {
		return abs
	}
	return pgWAL
}

// lastLook is the file whose time is that of the last look.
func (w Watch) lastLook(pgWAL string) string {
	// Each server has its own: a busy one must not look for one that stalls.
	where := sha256.Sum256([]byte(absolute(pgWAL)))
	return filepath.Join(w.StateDir, "backlog", hex.EncodeToString(where[:8])+".looked")
}

// Due reports whether Tell would look now.
func (w Watch) Due(walFile string) bool {
	pgWAL := filepath.Dir(walFile)
	info, err := os.Stat(w.lastLook(pgWAL))
	if now := w.Now(); err == nil && now.Sub(info.ModTime()) < lookEvery && !info.ModTime().After(now) {
		return false
	}
	_, err = os.Stat(filepath.Join(pgWAL, "archive_status"))
	return err == nil
}

// remember makes this the last look.
func (w Watch) remember(pgWAL string) {
	path := w.lastLook(pgWAL)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, nil, 0o600)
	}
	if err == nil {
		now := w.Now()
		err = os.Chtimes(path, now, now)
	}
	if err != nil {
		w.Log.Debug("remember the look at the backlog", "error", err.Error())
	}
}
