package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// destination is the directory that is restored into, with the directories of
// its tablespaces.
type destination struct {
	root  string
	mode  os.FileMode
	moved map[string]string // tablespace locations, old to new, as asked for
	used  map[string]bool   // which of them the backup has
	// places are the directories that the restore fills, and how much.
	places map[string]int64
	// where are the tablespaces of the backup: pg_tblspc/<oid> to directory.
	where map[string]string
	uid   int // owner to give to everything; -1: whoever runs this
	gid   int
	nonce string       // of this restore's markers
	lock  *flock.Flock // on the marker of root; nil until it is there
}

func newDestination(dest string, mode uint32, moved map[string]string) *destination {
	d := &destination{
		root: dest, mode: 0o700, moved: moved, used: make(map[string]bool),
		places: make(map[string]int64), where: make(map[string]string), uid: -1, gid: -1,
	}
	if mode&0o050 == 0o050 {
		d.mode = 0o750 // the server takes these two modes alone
	}
	d.places[dest] = 0
	return d
}

// expect takes note of an entry before anything is written.
func (d *destination) expect(e repo.Entry) {
	switch e.Kind {
	case repo.EntryTablespace:
		location := e.Location
		if to, ok := d.moved[location]; ok {
			d.used[location] = true
			location = to
		}
		d.where[e.Path] = location
		d.places[location] = 0
	case repo.EntryFile:
		place := d.root
		if rest, ok := strings.CutPrefix(e.Path, "pg_tblspc/"); ok {
			oid, _, _ := strings.Cut(rest, "/")
			if location, ok := d.where["pg_tblspc/"+oid]; ok {
				place = location
			}
		}
		d.places[place] += e.Size
	case repo.EntryDir:
	}
}

// check refuses a place that cannot take the backup, before it is touched.
func (d *destination) check(ctx context.Context, owner string) error {
	for from := range d.moved {
		if !d.used[from] {
			return errs.New(errs.Usage, "The backup's tablespaces are at: "+d.locations(), "--tablespace-map names %s, where the backup has no tablespace", from)
		}
	}
	taken := map[string]string{d.root: "the data directory"}
	for _, link := range slices.Sorted(maps.Keys(d.where)) {
		if other, ok := taken[d.where[link]]; ok {
			return errs.New(errs.Destination, "Give each its own directory with --tablespace-map.", "%s and %s would both be restored to %s", other, link, d.where[link])
		}
		taken[d.where[link]] = link
	}
	for dir := range d.places {
		if !filepath.IsAbs(dir) {
			return errs.New(errs.Destination, "Move it with --tablespace-map.", "tablespace location %q is not an absolute path", dir)
		}
	}
	if err := d.chooseOwner(owner); err != nil {
		return err
	}
	if err := d.clearUnfinished(); err != nil {
		return err
	}
	for _, dir := range slices.Sorted(maps.Keys(d.places)) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := d.checkEmpty(dir); err != nil {
			return err
		}
	}
	return d.checkSpace()
}

func (d *destination) locations() string {
	if len(d.where) == 0 {
		return "(none)"
	}
	return strings.Join(slices.Sorted(maps.Values(d.where)), ", ")
}

// checkEmpty refuses a directory with anything in it.
func (d *destination) checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return d.explain(err)
	}
	if len(entries) == 0 || onlyLostFound(entries) {
		return nil
	}
	if pid, ok := runningServer(dir); ok {
		return errs.New(errs.Destination, "Restore to another directory, or stop that server and move its directory away first.",
			"a server (pid %d) is running in %s", pid, dir)
	}
	hint := "Give an empty directory or one that does not exist. Keep the old one until the restore has proved good: mv " + dir + " " + dir + ".old"
	if dir != d.root {
		hint = "Another cluster may be using it. Move the tablespace with --tablespace-map " + d.original(dir) + "=NEW."
	}
	return errs.New(errs.Destination, hint, "%s is not empty", dir)
}

// original is the location in the backup of a tablespace that goes to dir.
func (d *destination) original(dir string) string {
	for from, to := range d.moved {
		if to == dir {
			return from
		}
	}
	return dir
}

func onlyLostFound(entries []os.DirEntry) bool {
	return len(entries) == 1 && entries[0].Name() == "lost+found"
}

// runningServer reads postmaster.pid (src/backend/utils/init/miscinit.c: the
// first line is the process id) and looks whether that process lives.
func runningServer(dir string) (pid int, running bool) {
	b, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0, false
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 0 {
		return 0, false
	}
	err = syscall.Kill(pid, 0)
	return pid, err == nil || errors.Is(err, syscall.EPERM)
}

// checkSpace compares what each file system must take with what it has.
func (d *destination) checkSpace() error {
	need := make(map[uint64]int64)
	free := make(map[uint64]uint64)
	name := make(map[uint64]string)
	for dir, n := range d.places {
		at := existing(dir)
		var fsys unix.Statfs_t
		if err := unix.Statfs(at, &fsys); err != nil {
			return d.explain(&fs.PathError{Op: "statfs", Path: at, Err: err})
		}
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil {
			return d.explain(&fs.PathError{Op: "stat", Path: at, Err: err})
		}
		need[st.Dev] += n
		free[st.Dev] = fsys.Bavail * uint64(fsys.Bsize)
		name[st.Dev] = dir
	}
	for dev, n := range need {
		if uint64(n) > free[dev] {
			return errs.New(errs.NoSpace, "Make room, or restore elsewhere (--tablespace-map moves tablespaces).",
				"the backup needs %s in %s, where %s are free",
				humanize.IBytes(uint64(n)), name[dev], humanize.IBytes(free[dev]))
		}
	}
	return nil
}

// existing is the nearest ancestor of dir that exists.
func existing(dir string) string {
	for dir != "/" {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// chooseOwner decides, for root alone, whose the files will be: PostgreSQL
// refuses to run as root and to use a directory of another user.
func (d *destination) chooseOwner(recorded string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if info, err := os.Stat(d.root); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			d.uid, d.gid = int(st.Uid), int(st.Gid)
			return nil
		}
	}
	u, err := user.Lookup(recorded)
	if err != nil {
		return errs.Wrap(err, errs.Destination, "Run backup-fetch as the user that will run PostgreSQL.",
			"running as root, and the owner in the backup is unknown here")
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("read user %s: %w", recorded, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return fmt.Errorf("read user %s: %w", recorded, err)
	}
	d.uid, d.gid = uid, gid
	return nil
}

// begin makes the directories that are filled and leaves the marker.
func (d *destination) begin(b *repo.Backup, now time.Time) error {
	dirs := slices.Sorted(maps.Keys(d.places))
	for _, dir := range dirs {
		// The directories above are not given away: where root makes them, the
		// server's user must be able to pass.
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return d.explain(err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return d.explain(err)
		}
		if err := os.Chmod(dir, d.mode); err != nil {
			return d.explain(err)
		}
	}
	return d.mark(b.Name, now, dirs)
}

func (d *destination) fileMode() os.FileMode { return d.mode &^ 0o111 }

// directory makes a directory or the link to a tablespace.
func (d *destination) directory(e repo.Entry) error {
	p := d.pathOf(e.Path)
	if e.Kind == repo.EntryTablespace {
		if err := os.MkdirAll(filepath.Dir(p), d.mode); err != nil {
			return d.explain(err)
		}
		return d.explain(os.Symlink(d.where[e.Path], p))
	}
	err := os.Mkdir(p, os.FileMode(e.Mode))
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return d.explain(err)
}

// required makes the directories that PostgreSQL wants to find.
func (d *destination) required(dirs []string) error {
	for _, dir := range dirs {
		err := os.Mkdir(d.pathOf(dir), d.mode)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return d.explain(err)
		}
	}
	return nil
}

func (d *destination) open(rel string, mode uint32) (*os.File, error) {
	f, err := os.OpenFile(d.pathOf(rel), os.O_WRONLY|os.O_CREATE, os.FileMode(mode))
	return f, d.explain(err)
}

// create makes a file of zeros.
func (d *destination) create(rel string, mode uint32, size int64) error {
	f, err := d.open(rel, mode)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	return d.explain(errors.Join(err, f.Close()))
}

func (d *destination) writeFile(rel string, mode uint32, body []byte) error {
	f, err := os.OpenFile(d.pathOf(rel), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, os.FileMode(mode))
	if err != nil {
		return d.explain(err)
	}
	_, err = f.Write(body)
	return d.explain(errors.Join(err, f.Sync(), f.Close()))
}

// remap writes the tablespace map with the new locations: at its first start
// the server makes the links of pg_tblspc by it.
func (d *destination) remap(body []byte) ([]byte, error) {
	spaces, err := postgres.ParseTablespaceMap(body)
	if err != nil {
		return nil, fmt.Errorf("read tablespace_map: %w", err)
	}
	for i, s := range spaces {
		if to, ok := d.where[path.Join("pg_tblspc", strconv.FormatUint(uint64(s.OID), 10))]; ok {
			spaces[i].Location = to
		}
	}
	return postgres.FormatTablespaceMap(spaces), nil
}

// finish makes everything durable, then places pg_control, and only then
// removes the marker.
func (d *destination) finish(control *pending) error {
	for _, dir := range slices.Sorted(maps.Keys(d.places)) {
		if err := d.giveAway(dir); err != nil {
			return err
		}
		if err := syncFileSystem(dir); err != nil {
			return d.explain(err)
		}
	}
	if err := d.stillMarked(); err != nil {
		return err
	}
	rel := postgres.ControlPath + ".agent-unfinished"
	if err := d.writeFile(rel, control.Mode, control.body); err != nil {
		return err
	}
	if d.uid >= 0 {
		if err := os.Lchown(d.pathOf(rel), d.uid, d.gid); err != nil {
			return d.explain(err)
		}
	}
	if err := os.Rename(d.pathOf(rel), d.pathOf(postgres.ControlPath)); err != nil {
		return d.explain(err)
	}
	if err := syncDir(d.pathOf("global")); err != nil {
		return d.explain(err)
	}
	return d.unmark()
}

// giveAway makes the owner chosen for root that of everything in dir.
func (d *destination) giveAway(dir string) error {
	if d.uid < 0 {
		return nil
	}
	return d.explain(filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, d.uid, d.gid)
	}))
}

// syncFileSystem makes everything on the file system of dir durable with one
// call: syncfs(2) since Linux 5.8 reports what could not be written.
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return errors.Join(&fs.PathError{Op: "syncfs", Path: dir, Err: err}, f.Close())
	}
	return f.Close()
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// explain turns an error of the file system into advice.
func (d *destination) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errs.Wrap(err, errs.NoSpace, "Make room and run the same command again: it clears what is unfinished.", "write restored files")
	case errors.Is(err, fs.ErrPermission):
		return errs.Wrap(err, errs.Destination, "Run backup-fetch as the user that will run PostgreSQL, in a place where it may write.", "write restored files")
	default:
		return errs.Wrap(err, errs.Destination, "Look at the kernel's log for disk errors; when it is mended run the same command again: it clears what is unfinished.", "write restored files")
	}
}
