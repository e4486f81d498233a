package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/chain"
	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Options are what a backup is made with.
type Options struct {
	ConnInfo        string // libpq connection string; empty: PG* variables
	PrimaryConnInfo string // that of a standby's primary; empty: the standby's own setting
	DataDir         string // must be the one the server reports; empty: that one
	Label           string
	Spread          bool // spread the checkpoint instead of asking for a fast one
	Concurrency     int
	Codec           compress.Setting
	Incremental     Incremental
	ReadRate        int64 // bytes per second from the data directory; 0: unlimited
	WALTimeout      time.Duration
	AllowConcurrent bool
	StateDir        string
	// RepositoryDirs are the repository's directories where it is local: they
	// must not lie in what is backed up.
	RepositoryDirs []string
	Host           host.Identity
	Log            *slog.Logger
	Now            func() time.Time
	Version        string
	// Progress is called about every second from one goroutine; nil: never.
	Progress func(Progress)
}

// Progress is how far a backup is.
type Progress struct {
	Phase   string // "starting", "copying", "finishing", "waiting for WAL"
	Read    int64  // bytes read
	Total   int64  // bytes expected, 0 while not known
	Stored  int64  // bytes after compression
	Elapsed time.Duration
}

// Result is a finished backup and what it took.
type Result struct {
	*repo.Backup
	BytesRead int64
	Inherited int64 // bytes that are as an earlier backup has them
	Vanished  int64
	Elapsed   time.Duration
	// Incomplete names the best-effort repositories that have not got it yet.
	Incomplete []string
}

// run is one backup on its way.
type run struct {
	Options
	repo    *repo.Repository
	server  *postgres.Server
	info    postgres.Info
	control *postgres.Control
	dataDir string
	backup  *repo.Backup
	lease   *repo.Lease
	chain   *chain.Store
	history postgres.History
	base    *base
	resumed *chain.Interrupted // a backup that was not finished, whose work is used
	notes   []string           // why the backup is what it is
	meter   meter
	bad     badPages
	// incomplete names the places where the backup does not exist yet.
	incomplete []string
	reporter   *reporter
	lsnMu      sync.Mutex
	started    postgres.LSN // 0: not yet

	// Of a backup from a standby; see completeStop.
	primary  *postgres.Server // nil where there is no session
	switched bool             // the primary has left the segment of the stop
	notAsked error            // why the primary could not be asked
}

// Run takes a backup, an incremental one where an earlier one fits. When it returns without error the backup is
// durable and restorable; when it fails, or the process dies, the server is
// out of backup mode and the repository has no such backup. A backup with
// damaged pages is made, marked, and returned together with a BadPages error.
func Run(ctx context.Context, r *repo.Repository, o Options) (res *Result, err error) {
	b := &run{Options: o, repo: r}
	started := o.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.reporter = startReporter(o, &b.meter)
	defer b.reporter.stop()

	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	defer b.disconnect(ctx)
	unlock, err := b.lock()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := b.repo.Check(ctx); err != nil {
		return nil, err
	}
	b.chain = chain.New(b.StateDir, b.repo, b.cluster(), b.Log)
	if b.info.InRecovery {
		// Which backup can be built on depends on where this one starts.
		if _, err := b.start(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.chooseBase(ctx); err != nil {
		return nil, err
	}
	if err := b.chooseInterrupted(ctx); err != nil {
		return nil, err
	}
	defer b.closeBase()
	if err := b.describeRun(); err != nil {
		return nil, err
	}
	unlockOwn, err := b.ownLock()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlockOwn()) }()
	if err := b.claim(ctx); err != nil {
		return nil, err
	}
	stopRenewing := b.lease.Hold(ctx, cancel)
	defer b.release(ctx)
	defer stopRenewing()
	if err := b.spareDoomed(ctx); err != nil {
		return nil, err
	}
	if err := b.copy(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			err = cause
		}
		return nil, fmt.Errorf("backup %s: %w", b.backup.Name, err)
	}
	res = &Result{Backup: b.backup, BytesRead: b.meter.read.Load(), Inherited: b.meter.inherited.Load(), Vanished: b.meter.vanished.Load(), Elapsed: o.Now().Sub(started), Incomplete: b.incomplete}
	if b.bad.count > 0 {
		return res, errs.New(errs.BadPages,
			"The backup exists and is marked. Find out whether the disk is failing; the pages are as damaged in the running server (pg_amcheck tells more), an older backup may have them whole.",
			"backup %s holds %d pages whose checksum is wrong, the first: %s", b.backup.Name, b.bad.count, b.bad.sample[0])
	}
	return res, nil
}

// connect finds the server, and proves that the data directory is its own.
func (b *run) connect(ctx context.Context) error {
	b.reporter.phase("starting")
	server, err := postgres.Connect(ctx, b.ConnInfo, "agent backup-push")
	if err != nil {
		return err
	}
	b.server = server
	if err := b.identify(ctx); err != nil {
		b.disconnect(ctx)
		return err
	}
	return nil
}

func (b *run) identify(ctx context.Context) error {
	info, err := b.server.Info(ctx)
	if err != nil {
		return err
	}
	b.info = info
	if err := errors.Join(postgres.Preflight(info), info.RequirePrivileges()); err != nil {
		return err
	}
	if b.dataDir, err = ownDirectory(b.DataDir, info.DataDirectory); err != nil {
		return err
	}
	if b.control, _, err = postgres.ReadControl(ctx, b.dataDir); err != nil {
		return err
	}
	if b.control.SystemIdentifier != info.SystemIdentifier {
		return errs.New(errs.Foreign, "Give the data directory of the server that the connection settings (PGHOST, PGPORT) lead to.",
			"data directory %s belongs to cluster %d, the server is cluster %d", b.dataDir, b.control.SystemIdentifier, info.SystemIdentifier)
	}
	for _, dir := range b.RepositoryDirs {
		if within(b.dataDir, dir) {
			return errs.New(errs.Config, "Put the repository elsewhere, best on another machine.",
				"repository %s lies in the data directory %s", dir, b.dataDir)
		}
	}
	b.warnings()
	return nil
}

// warnings says what the backup will not hold or may wait for.
func (b *run) warnings() {
	for _, path := range []string{b.info.ConfigFile, b.info.HBAFile, b.info.IdentFile} {
		if path != "" && !within(b.dataDir, path) {
			b.Log.Warn("configuration file lies outside the data directory and is not in the backup", "path", path)
		}
	}
	if a := b.info.Archiver; !b.info.InRecovery && failing(a) {
		b.Log.Warn("archiving is failing; the backup will wait for it at its end", "wal", a.LastFailedWAL, "since", a.LastFailedTime)
	}
}

// ownDirectory resolves the data directory and compares what was given with
// what the server reports.
func ownDirectory(given, reported string) (string, error) {
	dir, err := filepath.EvalSymlinks(reported)
	if err != nil {
		return "", errs.Wrap(err, errs.Server, "backup-push runs on the host of the database, as the user that PostgreSQL runs as.",
			"open the data directory that the server reports")
	}
	if given == "" {
		return dir, nil
	}
	a, err := os.Stat(given)
	if err != nil {
		return "", errs.Wrap(err, errs.Usage, "Give the server's data directory, or leave it out to take what the server reports ("+reported+").", "open data directory")
	}
	b, err := os.Stat(dir)
	if err != nil {
		return "", readError(err)
	}
	if !os.SameFile(a, b) {
		return "", errs.New(errs.Foreign, "Check PGHOST and PGPORT, or leave the argument out to take what the server reports.",
			"%s is not the data directory of the server, which is %s", given, reported)
	}
	return dir, nil
}

// within reports whether path is dir or lies below it.
func within(dir, path string) bool {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// disconnect ends the session, whatever became of ctx: with it ends the
// server's backup mode.
func (b *run) disconnect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := b.server.Close(ctx); err != nil {
		b.Log.Debug("end session", "error", err.Error())
	}
}

func (b *run) cluster() repo.ClusterID { return repo.ClusterID(b.control.SystemIdentifier) }

// describeRun names the backup and notes what is known before it begins.
func (b *run) describeRun() error {
	name, err := repo.NewBackupName(b.Now())
	if err != nil {
		return err
	}
	b.backup = &repo.Backup{
		Format: repo.Format, Name: name, Type: repo.TypeFull, Cluster: b.cluster(), Label: b.Label,
		PostgresVersion: b.info.VersionNum, CatalogVersion: b.control.CatalogVersion, Started: b.Now().UTC().Truncate(time.Millisecond),
		SegmentSize: b.control.WALSegmentSize, BlockSize: int64(b.control.BlockSize),
		Checksums: b.control.DataChecksums(), Host: b.Host.Name, Machine: b.Host.Machine, StateID: b.Host.State,
		Directory: b.dataDir, User: ownerName(b.dataDir), Standby: b.info.InRecovery, Sealed: b.repo.Sealed(), Agent: b.Version,
	}
	return nil
}

// claim announces the backup.
func (b *run) claim(ctx context.Context) error {
	cluster := b.backup.Cluster
	// Side by side: each is a round trip to the store.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return b.repo.EnsureCluster(gctx, repo.Cluster{
			ID: cluster, Major: b.info.Major, CatalogVersion: b.control.CatalogVersion,
			BlockSize: b.control.BlockSize, RelSegBlocks: b.control.RelSegBlocks, SegmentSize: b.control.WALSegmentSize,
		})
	})
	g.Go(func() (err error) {
		b.lease, err = b.repo.Claim(gctx, cluster, repo.Claim{
			Backup: b.backup.Name, Host: b.Host.Name, State: b.StateDir, StateID: b.Host.State, PID: os.Getpid(), Lenders: b.lenders(),
		}, repo.ClaimOptions{Concurrent: b.AllowConcurrent, Running: b.running})
		return err
	})
	err := g.Wait()
	if err != nil && b.lease != nil {
		b.release(ctx)
	}
	return err
}

// release gives the claim back. Credentials that cannot delete leave it to
// expire, which is no reason to call a backup failed.
func (b *run) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := b.lease.Release(ctx); err != nil {
		b.Log.Warn("claim is left to expire", "error", err.Error())
	}
}

func ownerName(dir string) string {
	info, err := os.Stat(dir)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	uid := strconv.FormatUint(uint64(st.Uid), 10)
	u, err := user.LookupId(uid)
	if err != nil {
		return uid
	}
	return u.Username
}

// copy is the backup proper: start, files, pg_control, stop, WAL, and last of
// all backup.json.
func (b *run) copy(ctx context.Context) error {
	start, err := b.start(ctx)
	if err != nil {
		return err
	}
	b.backup.StartLSN, b.backup.Timeline = start, b.info.Timeline
	b.Log.Info("backup started", "backup", string(b.backup.Name), "lsn", start.String())
	b.reporter.phase("copying")

	layers, err := b.layers(ctx, start)
	if err != nil {
		return err
	}
	defer closeLayers(layers)
	// The uploads have their own group: the pipeline must be waited for first.
	uploads, uctx := errgroup.WithContext(ctx)
	set := b.repo.NewPackSet(uctx, uploads, b.backup.Cluster, b.backup.Name, min(max(b.Concurrency, 2), 4))
	kept := b.chain.Begin(b.backup.Name)
	manifest, err := b.newManifest(set, kept)
	if err != nil {
		return errors.Join(err, kept.Close())
	}
	data := set.Writer(repo.PackData)
	err = b.files(uctx, start, layers, data, manifest, &marker{
		set: set, data: data, manifest: manifest, kept: kept, backup: b.backup, meter: &b.meter, now: b.Now, lsn: b.insertLSN,
	})
	if err == nil {
		b.reporter.phase("finishing")
		err = b.stop(uctx, start, data, manifest)
	}
	if err == nil {
		err = b.closePacks(uctx, data, manifest)
	}
	// The first failed upload cancels uctx: it, not the cancellation, is the reason.
	if uerr := uploads.Wait(); uerr != nil {
		err = uerr
	}
	if err == nil {
		err = b.publish(ctx, set, manifest, kept)
	}
	if errs.KindOf(err) == errs.Damaged && b.base != nil {
		// What is kept here may be what is damaged: the next run asks elsewhere.
		err = errors.Join(err, b.chain.Forget(b.base.Name))
	}
	return errors.Join(err, manifest.Close(), kept.Close())
}

// start begins the backup, once, and returns the LSN from which it needs WAL.
func (b *run) start(ctx context.Context) (postgres.LSN, error) {
	if b.started != 0 {
		return b.started, nil
	}
	start, err := b.server.StartBackup(ctx, b.Label, !b.Spread)
	if err != nil {
		return 0, err
	}
	if err := b.onTimeline(ctx); err != nil {
		return 0, err
	}
	b.started = start
	return start, nil
}

func (b *run) newManifest(set *repo.PackSet, kept repo.ManifestCopy) (*repo.ManifestWriter, error) {
	info, err := os.Stat(b.dataDir)
	if err != nil {
		return nil, readError(err)
	}
	return b.repo.NewManifestWriter(set, repo.ManifestHeader{
		Backup: b.backup.Name, BlockSize: b.backup.BlockSize, Mode: uint32(info.Mode().Perm()),
	}, kept)
}

func (b *run) files(ctx context.Context, start postgres.LSN, layers []*layer, data *repo.Writer, manifest *repo.ManifestWriter, marks *marker) error {
	w := b.newWalker()
	stopEstimate := b.estimate(ctx)
	defer stopEstimate()
	stopWatch := b.watchArchiving(ctx, start)
	defer stopWatch()
	return copyFiles(ctx, w, data, manifest, copyOptions{
		name: b.backup.Name, workers: b.Concurrency, codec: b.Codec, block: b.backup.BlockSize,
		readRate: b.ReadRate, meter: &b.meter, layers: layers, marks: marks,
		pages: &pageChecker{
			enabled: b.backup.Checksums && b.backup.BlockSize == 8192, block: b.backup.BlockSize,
			segBlocks: b.control.RelSegBlocks, start: start, current: b.insertLSN, bad: &b.bad, log: b.Log,
		},
	})
}

func (b *run) newWalker() *walker {
	w := &walker{
		root:       b.dataDir,
		versionDir: postgres.TablespaceVersionDir(b.info.Major, b.control.CatalogVersion),
		log:        b.Log,
	}
	if info, err := os.Stat(b.StateDir); err == nil {
		w.avoid = append(w.avoid, info)
	}
	return w
}

// estimate walks once for the sizes alone, beside the backup, so that progress
// can say how much there is to do.
func (b *run) estimate(ctx context.Context) (stop func()) {
	if b.Progress == nil || b.base != nil {
		return func() {} // what will be read is not known before it is planned
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		total := int64(0)
		w := b.newWalker()
		w.log = slog.New(slog.DiscardHandler)
		w.visit = func(s source) error {
			total += s.Size
			return nil
		}
		if err := w.run(ctx); err == nil {
			b.meter.total.Store(total)
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// insertLSN asks the server where it writes WAL now. The session is one, the
// workers are many.
func (b *run) insertLSN(ctx context.Context) (postgres.LSN, error) {
	b.lsnMu.Lock()
	defer b.lsnMu.Unlock()
	return b.server.InsertLSN(ctx)
}
