package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/storage/azure"
	"agent/internal/storage/decorate"
	folder "agent/internal/storage/fs"
	"agent/internal/storage/gcs"
	"agent/internal/storage/s3"
	"agent/internal/storage/sftp"
)

// opening says how repositories are opened.
type opening struct {
	// local leaves all stores closed that are not on this host.
	local bool
	// create makes what holds the repository: a folder.
	create bool
	// hurry is for commands that a server waits for: what failed is tried again
	// at short intervals.
	hurry bool
	// write is for a command that only writes: a best-effort repository that
	// failed a moment ago is not even opened, which may take long.
	write bool
	// patience is how long a repository that cannot be reached is tried, where
	// there are others; 0: as long as if it were the only one.
	patience time.Duration
	// brief is that patience holds for an only one, too: it is to be told soon.
	brief bool
}

// patience of the commands where another repository can stand in.
const (
	quickPatience = 15 * time.Second // a server waits
	longPatience  = time.Minute
)

// Slower than this, in bytes per second, a single upload counts as hanging and
// is tried again. One that a server waits for must leave time for another try.
const (
	slowestPut     = 256 << 10
	slowestHurried = 1 << 20
)

// hurryWait is the longest mean wait between two tries of a hurried command.
const hurryWait = 3 * time.Second

// store is an opened repository's bucket, for what the commands say of it.
type store struct {
	name    string
	counter *decorate.Counter
	base    storage.Bucket
}

// errNotOpened is that a repository is not needed yet.
var errNotOpened = errors.New("the repository was not opened")

// places opens all configured repositories. One of several that cannot be
// opened is passed on with its error: whether that matters is decided where it
// is used.
func (a *app) places(ctx context.Context, cfg *config.Config, how opening) ([]repo.Place, error) {
	if err := cfg.NeedRepository(); err != nil {
		return nil, err
	}
	several := len(cfg.Repositories) > 1
	var all []repo.Place
	for _, r := range cfg.Repositories {
		p := placeOf(cfg, r)
		p.Err = a.leftAlone(cfg, p, how)
		if scheme, _, _, err := storage.ParseURL(r.URL); how.local && err == nil && scheme != storage.SchemeFile {
			p.Err = errNotOpened
		}
		if p.Err != nil {
			all = append(all, p)
			continue
		}
		base, err := a.openStore(ctx, cfg, r, how)
		if err != nil && !strings.Contains(err.Error(), r.URL) {
			err = fmt.Errorf("open repository %s: %w", r.URL, err)
		}
		switch {
		case err == nil:
			p.Bucket = a.decorated(cfg, r, base, how, several || how.brief)
		case !several, errs.KindOf(err) == errs.Config:
			return nil, err
		default:
			p.Err = err
		}
		all = append(all, p)
	}
	return all, nil
}

// leftAlone is why a best-effort repository is not opened, or nil.
func (a *app) leftAlone(cfg *config.Config, p repo.Place, how opening) error {
	if p.Required || !how.write {
		return nil
	}
	return repo.NewDebts(cfg.StateDir).Suspended(p.ID(), time.Now())
}

// placeOf describes a repository that is not opened yet.
func placeOf(cfg *config.Config, r config.Repository) repo.Place {
	p := repo.Place{
		Name: r.Name, URL: storage.Canonical(r.URL), Required: r.Required,
	}
	switch scheme, _, _, err := storage.ParseURL(r.URL); {
	case err != nil: // opening it says so
	case scheme == storage.SchemeS3:
		p.At = r.S3Endpoint
	case scheme == storage.SchemeGCS:
		p.At = r.GCSEndpoint
	case scheme == storage.SchemeAzure:
		p.At = cmp.Or(r.AzureEndpoint, r.AzureAccount)
	}
	if i := r.Immutable; i != nil {
		p.Immutable = &repo.Immutable{Mode: storage.LockMode(i.Mode), For: i.For, FullEvery: cfg.FullEvery}
	}
	return p
}

// decorated puts the decorators around a store: retries, outermost, count as
// requests each.
func (a *app) decorated(cfg *config.Config, r config.Repository, base storage.Bucket, how opening, several bool) storage.Bucket {
	counter := decorate.Count(base)
	a.stores = append(a.stores, store{r.Name, counter, base})
	var b storage.Bucket = counter
	slowest := int64(slowestPut)
	if how.hurry {
		slowest = slowestHurried
	}
	if cfg.Bandwidth > 0 {
		b = decorate.Bandwidth(b, decorate.BandwidthOptions{Up: cfg.Bandwidth, Down: cfg.Bandwidth})
		slowest = min(slowest, max(cfg.Bandwidth/int64(2*cfg.Concurrency), 1))
	}
	b = decorate.Timeout(b, decorate.TimeoutOptions{MinRate: slowest})
	retry := decorate.RetryOptions{Log: a.log, Now: time.Now}
	if how.hurry {
		retry.Max = hurryWait
	}
	if several {
		retry.Elapsed = how.patience
		if !r.Required && (retry.Elapsed == 0 || retry.Elapsed > quickPatience) {
			retry.Elapsed = quickPatience
		}
	}
	return decorate.Retry(b, retry)
}

// openStore opens the store that a URL leads to.
func (a *app) openStore(ctx context.Context, cfg *config.Config, r config.Repository, how opening) (storage.Bucket, error) {
	scheme, host, path, err := storage.ParseURL(r.URL)
	if err != nil {
		return nil, err
	}
	url := storage.Canonical(r.URL)
	switch scheme {
	case storage.SchemeFile:
		return openFolder(ctx, path, how.create, r.Required)
	case storage.SchemeS3:
		return s3.Open(ctx, s3.Options{
			Bucket: host, Prefix: path, URL: url, Region: r.S3Region, Endpoint: r.S3Endpoint, PathStyle: r.S3PathStyle,
			Profile: r.S3Profile, Checksum: r.S3Checksum, StorageClass: r.StorageClass, SSE: r.SSE, KMSKeyID: r.KMSKey,
			CAFile: r.CAFile, Insecure: r.Insecure, Connections: cfg.Concurrency, Log: a.log,
		})
	case storage.SchemeGCS:
		return gcs.Open(ctx, gcs.Options{
			Bucket: host, Prefix: path, URL: url, StorageClass: r.StorageClass, KMSKey: r.KMSKey, UserProject: r.GCSUserProject,
			Endpoint: r.GCSEndpoint, Emulator: os.Getenv("STORAGE_EMULATOR_HOST"),
			CAFile: r.CAFile, Insecure: r.Insecure, Connections: cfg.Concurrency, Log: a.log,
		})
	case storage.SchemeAzure:
		return azure.Open(ctx, azure.Options{
			Container: host, Prefix: path, URL: url, Account: azureAccount(r), Endpoint: r.AzureEndpoint,
			Secrets: azure.FromEnv(os.LookupEnv), StorageClass: r.StorageClass, EncryptionScope: r.KMSKey,
			CAFile: r.CAFile, Insecure: r.Insecure, Connections: cfg.Concurrency, Log: a.log,
		})
	default:
		return a.openSFTP(ctx, cfg, r, host, path, how)
	}
}

// folderLimit is how long a folder may take to be opened: an NFS server that is
// away makes every look wait until it is back.
const (
	folderLimit     = 30 * time.Second
	bestEffortLimit = 5 * time.Second
)

// openFolder opens a folder, or leaves the attempt behind when it hangs.
func openFolder(ctx context.Context, path string, create, required bool) (storage.Bucket, error) {
	limit := bestEffortLimit
	if required {
		limit = folderLimit
	}
	type opened struct {
		b   *folder.Bucket
		err error
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: the folder %s did not answer for %s", storage.ErrUnavailable, path, limit))
	defer cancel()
	result := make(chan opened, 1)
	go func() {
		open := folder.Open
		if create {
			open = folder.Create
		}
		b, err := open(ctx, path)
		result <- opened{b, err}
	}()
	select {
	case o := <-result:
		if o.err != nil {
			return nil, o.err
		}
		return o.b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func azureAccount(r config.Repository) string {
	if r.AzureAccount != "" {
		return r.AzureAccount
	}
	return os.Getenv("AZURE_STORAGE_ACCOUNT")
}

func (a *app) openSFTP(ctx context.Context, cfg *config.Config, r config.Repository, host, path string, how opening) (storage.Bucket, error) {
	user, address, ok := strings.Cut(host, "@")
	if !ok {
		user, address = currentUser(), host
	}
	url := storage.Canonical(r.URL)
	o := sftp.Options{
		User: user, Folder: path, URL: url, KnownHostsFile: r.SFTPKnownHosts,
		AgentSocket: os.Getenv("SSH_AUTH_SOCK"), Password: cfg.SFTPPassword,
		Create: how.create, Connections: cfg.Concurrency, Log: a.log,
	}
	var err error
	if o.Host, o.Port, err = splitPort(address); err != nil {
		return nil, err
	}
	home := homeDir()
	if o.KnownHostsFile == "" {
		o.KnownHostsFile = filepath.Join(home, ".ssh", "known_hosts")
	}
	if o.IdentityFiles = sftp.Identities(home); r.SFTPIdentityFile != "" {
		o.IdentityFiles = []string{r.SFTPIdentityFile}
	}
	if cfg.SFTPPassphrase != "" {
		o.Passphrase = func(string) (string, error) { return cfg.SFTPPassphrase, nil }
	}
	return sftp.Open(ctx, o)
}

// splitPort takes host[:port] apart; an IPv6 address stands in brackets.
func splitPort(address string) (host string, port int, err error) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 || strings.HasSuffix(address, "]") {
		return strings.Trim(address, "[]"), 0, nil
	}
	port, err = strconv.Atoi(address[i+1:])
	if err != nil || port < 1 || port > 65535 {
		return "", 0, errs.New(errs.Config, "Write it as sftp://user@host:port/folder.", "repository URL has the port %q", address[i+1:])
	}
	return strings.Trim(address[:i], "[]"), port, nil
}

// requests says what went to each repository: "21 PUT, 3 GET".
func (a *app) requests() string {
	if len(a.stores) == 1 {
		return a.stores[0].counter.Counts().String()
	}
	var parts []string
	for _, s := range a.stores {
		parts = append(parts, s.name+": "+s.counter.Counts().String())
	}
	return strings.Join(parts, "; ")
}

// localDirs are the directories of repositories in local folders.
func localDirs(cfg *config.Config) []string {
	var dirs []string
	for _, r := range cfg.Repositories {
		if scheme, _, path, err := storage.ParseURL(r.URL); err == nil && scheme == storage.SchemeFile {
			dirs = append(dirs, path)
		}
	}
	return dirs
}
