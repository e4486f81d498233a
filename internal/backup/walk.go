// Package backup takes backups of a running server: it walks the data
// directory, reads and checks its pages, and hands them through frames and
// packs to the repository, between the start and the stop of PostgreSQL's
// backup mode.
package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// walker goes through a data directory in the order of a manifest
// (repo.ComparePaths), leaving out what PostgreSQL's own base backup leaves
// out. It holds the names of one directory of each level at a time.
type walker struct {
	root string
	// versionDir is the one directory of a tablespace that is this server's.
	versionDir string
	// avoid are directories of our own that may lie inside the data directory.
	avoid []os.FileInfo
	log   *slog.Logger
	visit func(source) error
}

// source is an entry of the manifest and where to read it.
type source struct {
	repo.Entry
	osPath string
	class  postgres.FileClass
}

// run walks everything. A file or directory that vanishes is not an error.
func (w *walker) run(ctx context.Context) error { return w.dir(ctx, w.root, "") }

func (w *walker) dir(ctx context.Context, osDir, rel string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	entries, err := os.ReadDir(osDir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) && rel != "" {
		return nil
	}
	if err != nil {
		return readError(err)
	}
	var unlogged postgres.UnloggedFilter
	if isDatabaseDir(rel) {
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name()
		}
		unlogged = postgres.NewUnloggedFilter(names)
	}
	for _, e := range entries {
		name := e.Name()
		p := path.Join(rel, name)
		if postgres.SkipFile(p) || unlogged.Skip(name) {
			continue
		}
		if err := w.entry(ctx, e, filepath.Join(osDir, name), p); err != nil {
			return err
		}
	}
	return nil
}

// isDatabaseDir reports whether relations of a database lie directly in dir.
func isDatabaseDir(dir string) bool { return postgres.ClassifyPath(dir + "/1").Relation }

func (w *walker) entry(ctx context.Context, e os.DirEntry, osPath, rel string) error {
	if path.Dir(path.Dir(rel)) == tablespaceDir && path.Base(rel) != w.versionDir {
		return nil // another major's or another cluster's
	}
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return readError(err)
	}
	switch {
	case info.Mode().IsRegular():
		return w.file(info, osPath, rel)
	case info.IsDir():
		return w.subdir(ctx, info, osPath, rel)
	case info.Mode()&fs.ModeSymlink != 0:
		return w.link(ctx, osPath, rel)
	default:
		w.log.Warn("left out: neither file nor directory", "path", rel)
		return nil
	}
}

func (w *walker) file(info fs.FileInfo, osPath, rel string) error {
	if rel == postgres.ControlPath {
		return nil // read last, when everything else has been
	}
	return w.visit(source{
		Entry: repo.Entry{
			Kind: repo.EntryFile, Path: rel, Mode: uint32(info.Mode().Perm()),
			ModTime: info.ModTime(), Size: info.Size(),
		},
		osPath: osPath,
		class:  postgres.ClassifyPath(rel),
	})
}

func (w *walker) subdir(ctx context.Context, info fs.FileInfo, osPath, rel string) error {
	for _, a := range w.avoid {
		if os.SameFile(a, info) {
			w.log.Warn("left out: the agent's own directory", "path", rel)
			return nil
		}
	}
	if err := w.visit(source{Entry: repo.Entry{Kind: repo.EntryDir, Path: rel, Mode: uint32(info.Mode().Perm())}}); err != nil {
		return err
	}
	if postgres.SkipDirContents(rel) {
		return nil
	}
	return w.dir(ctx, osPath, rel)
}

const tablespaceDir = "pg_tblspc"

// link follows the two kinds of links that the server itself makes or knows:
// tablespaces, and a pg_wal elsewhere, whose contents are not copied anyway.
func (w *walker) link(ctx context.Context, osPath, rel string) error {
	info, err := os.Stat(osPath)
	if errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("left out: link to nothing", "path", rel)
		return nil
	}
	if err != nil {
		return readError(err)
	}
	if rel == "pg_wal" && info.IsDir() {
		return w.visit(source{Entry: repo.Entry{Kind: repo.EntryDir, Path: rel, Mode: uint32(info.Mode().Perm())}})
	}
	oid, isOID := parseOID(path.Base(rel))
	if path.Dir(rel) != tablespaceDir || !isOID || !info.IsDir() {
		w.log.Warn("left out: a link that the server does not follow", "path", rel)
		return nil
	}
	target, err := os.Readlink(osPath)
	if err != nil {
		return readError(err)
	}
	err = w.visit(source{Entry: repo.Entry{
		Kind: repo.EntryTablespace, Path: rel, Mode: uint32(info.Mode().Perm()),
		OID: oid, Location: target,
	}})
	if err != nil {
		return err
	}
	return w.dir(ctx, osPath, rel)
}

func parseOID(s string) (uint32, bool) {
	oid, err := strconv.ParseUint(s, 10, 32)
	return uint32(oid), err == nil
}

func readError(err error) error { return fmt.Errorf("read data directory: %w", err) }
