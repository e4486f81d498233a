package repo

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

// Digest is a SHA-256, in hex in JSON.
type Digest [32]byte

// String is the digest in lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText writes hex.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads hex.
func (d *Digest) UnmarshalText(b []byte) error {
	n, err := hex.Decode(d[:], b)
	if err != nil || n != len(d) || len(b) != 2*len(d) {
		return fmt.Errorf("%q is not a SHA-256 in hex", b)
	}
	return nil
}

// ObjectDigest pins an object by size and SHA-256 of its stored bytes.
type ObjectDigest struct {
	Size   int64  `json:"size"`
	SHA256 Digest `json:"sha256"`
}

// Backup is backup.json: what is known of a backup without any key, and what
// makes it exist. It stays below 8 KiB.
type Backup struct {
	Format          int                  `json:"format"`
	Name            BackupName           `json:"name"`
	Type            string               `json:"type"`                      // TypeFull or TypeIncremental
	Parent          BackupName           `json:"parent,omitempty"`          // what an incremental one builds on
	Full            BackupName           `json:"full,omitempty"`            // the full one that its chain began with
	ChainStart      time.Time            `json:"chain_start_time,omitzero"` // when that one began
	Depth           int                  `json:"depth,omitempty"`           // incrementals from there to this one
	Resumed         BackupName           `json:"resumed,omitempty"`         // the interrupted one whose packs it took over
	CompactedFrom   BackupName           `json:"compacted_from,omitempty"`  // the one whose bytes it has, in packs of its own
	Detector        string               `json:"detector,omitempty"`        // what told the changed pages
	Notes           []string             `json:"notes,omitempty"`           // why the backup is what it is
	Cluster         ClusterID            `json:"system_identifier,string"`
	PostgresVersion int                  `json:"postgres_version"` // server_version_num
	CatalogVersion  uint32               `json:"catalog_version,omitempty"`
	Label           string               `json:"label"`
	Started         time.Time            `json:"start_time"`
	Stopped         time.Time            `json:"stop_time"`
	StartLSN        postgres.LSN         `json:"start_lsn"`
	StopLSN         postgres.LSN         `json:"stop_lsn"`
	Timeline        postgres.Timeline    `json:"timeline"`
	StartSegment    string               `json:"start_wal"`
	StopSegment     string               `json:"stop_wal"`
	NextXID         uint64               `json:"next_xid"` // at stop, epoch<<32|xid
	SegmentSize     postgres.SegmentSize `json:"wal_segment_size"`
	BlockSize       int64                `json:"block_size"`
	Checksums       bool                 `json:"data_checksums"`
	BadPages        int64                `json:"bad_pages"`
	BadPageSample   []string             `json:"bad_page_sample,omitempty"` // the first, "path block N"
	Files           int64                `json:"files"`
	DataBytes       int64                `json:"data_bytes"`                // size of what is restored
	StoredBytes     int64                `json:"stored_bytes"`              // size of the own packs
	ReadBytes       int64                `json:"read_bytes,omitempty"`      // from the data directory
	InheritedBytes  int64                `json:"inherited_bytes,omitempty"` // of DataBytes, as an earlier backup has them
	PackCount       int64                `json:"pack_count"`                // own packs
	Tablespaces     int                  `json:"tablespaces"`
	Host            string               `json:"host"`
	Machine         string               `json:"machine,omitempty"` // hash of the machine id
	StateID         string               `json:"state_id"`          // of the agent's state directory
	Directory       string               `json:"directory"`         // the data directory, links resolved
	User            string               `json:"user"`              // owner of the data directory
	Standby         bool                 `json:"standby,omitempty"` // the server was in recovery
	Sealed          bool                 `json:"sealed"`
	Agent           string               `json:"agent"`
	Packs           ObjectDigest         `json:"packs"`
	Manifest        ObjectDigest         `json:"manifest"`
	// Signature is reserved for a detached signature over the other fields.
	Signature string `json:"signature,omitempty"`
	// Self is the SHA-256 of backup.json itself with its own 64 digits written
	// as zeros, so that damage to it is noticed like that to what it pins.
	Self Digest `json:"self_sha256"`

	// Created is when the store that it was read from took backup.json, by that
	// store's clock.
	Created time.Time `json:"-"`
}

// The types of backups.
const (
	TypeFull        = "full"
	TypeIncremental = "incremental"
)

// Chain is when the full backup began that this one goes back to.
func (b *Backup) Chain() time.Time {
	if b.ChainStart.IsZero() {
		return b.Started
	}
	return b.ChainStart
}

// CompareEnds orders backups of one line of timelines by how far they go. Of two
// that end at the same position the one that was compacted comes last, as it
// needs fewer objects, and of two of these the one with the later name.
func CompareEnds(a, b *Backup) int {
	compacted := func(b *Backup) int {
		if b.CompactedFrom != "" {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.StopLSN, b.StopLSN), cmp.Compare(a.StartLSN, b.StartLSN),
		cmp.Compare(compacted(a), compacted(b)), cmp.Compare(a.Name, b.Name))
}

// selfField stands before the digits of Self.
const selfField = `"self_sha256": "`

// selfDigest finds the digits of Self in an encoded backup.json and computes
// what they must be. ok is false where there are none.
func selfDigest(body []byte) (digits []byte, sum Digest, ok bool) {
	at := bytes.LastIndex(body, []byte(selfField))
	if at < 0 || len(body) < at+len(selfField)+2*len(sum) {
		return nil, sum, false
	}
	at += len(selfField)
	blank := bytes.Clone(body)
	digits = body[at : at+2*len(sum)]
	copy(blank[at:], bytes.Repeat([]byte{'0'}, len(digits)))
	return digits, sha256.Sum256(blank), true
}

const maxBackupJSON = 8 << 10

// StoreBackup creates backup.json, the act that makes the backup exist. It
// comes after everything else is durable; borrowed are the packs of other
// backups that it needs, by lender and number. In a best-effort place that
// lacks something the backup does not exist yet; agent repo sync brings the
// rest, and then backup.json. incomplete names those places.
func (r *Repository) StoreBackup(ctx context.Context, b *Backup, borrowed []Pack) (incomplete []string, err error) {
	body, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode backup.json: %w", err)
	}
	if len(body) >= maxBackupJSON {
		return nil, fmt.Errorf("encode backup.json: %d bytes are more than %d", len(body), maxBackupJSON)
	}
	body = append(body, '\n')
	digits, sum, ok := selfDigest(body)
	if !ok {
		return nil, errors.New("encode backup.json: it has no place for its own hash")
	}
	copy(digits, sum.String())
	b.Self = sum
	key := b.Cluster.backupKey(b.Name)
	err = r.everywhere(ctx, key, func(ctx context.Context, p *place) error {
		if err := r.ready(ctx, p, b, borrowed); err != nil {
			return err
		}
		_, err := p.putOwned(ctx, key, storage.Bytes(body), storage.PutOptions{Lock: p.lock(r.now())})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store backup.json: %w", err)
	}
	for _, p := range r.places {
		if p.err() != nil {
			incomplete = append(incomplete, p.Name)
		}
	}
	return incomplete, nil
}

// ready is why a backup cannot exist in a place yet, or nil. The WAL is in each
// required place before this is asked. Packs to borrow were in the repository
// when the backup began, which is the place if there is no other; a place that
// was added or has been away may lack them.
func (r *Repository) ready(ctx context.Context, p *place, b *Backup, borrowed []Pack) error {
	if !p.Required {
		lacks, err := r.lacking(ctx, p, b, borrowed)
		if err == nil && lacks != "" {
			err = fmt.Errorf("the %s has not arrived there", lacks)
		}
		return err
	}
	if len(r.places) == 1 {
		return nil
	}
	lacks, err := lacksPack(ctx, p, b.Cluster, borrowed)
	if err == nil && lacks != "" {
		err = errs.New(errs.Damaged, "Bring it there with agent repo sync, then run the backup again.",
			"the %s, which backup %s needs, is not in repository %s", lacks, b.Name, p.Name)
	}
	return err
}

// LoadBackup reads one backup.json. A backup that does not exist is NotFound, also
// where a bucket has older versions of what was deleted.
func (r *Repository) LoadBackup(ctx context.Context, cluster ClusterID, name BackupName) (*Backup, error) {
	return r.loadBackup(ctx, cluster, name, probing)
}

// LoadHiddenBackup is LoadBackup for who wants to read a backup as long as that is
// possible at all: one that was deleted, too, where older versions are kept.
func (r *Repository) LoadHiddenBackup(ctx context.Context, cluster ClusterID, name BackupName) (*Backup, error) {
	return r.loadBackup(ctx, cluster, name, expected)
}

func (r *Repository) loadBackup(ctx context.Context, cluster ClusterID, name BackupName, how reading) (*Backup, error) {
	key := cluster.backupKey(name)
	var b *Backup
	err := r.read(ctx, key, how, func(s source) error {
		body, info, err := s.readObject(ctx, key, maxBackupJSON)
		if err != nil {
			return err
		}
		if b, err = s.decodeBackup(body, cluster, name); err == nil {
			b.Created = info.ModTime
		}
		return err
	})
	if errors.Is(err, storage.ErrNotExist) {
		return nil, errs.Wrap(err, errs.NotFound,
			"See what there is with: agent backup-list. A backup without backup.json was interrupted, is still running, or lost that object.",
			"there is no backup %s of cluster %s in %s", name, cluster, r)
	}
	return b, err
}

func (s source) decodeBackup(body []byte, cluster ClusterID, name BackupName) (*Backup, error) {
	key := cluster.backupKey(name)
	digits, sum, ok := selfDigest(body)
	if ok && string(digits) != sum.String() {
		return nil, s.damaged(errors.New("its SHA-256 is not the one it carries"), key)
	}
	// Of another format no field but these has to be what it is today.
	var other struct {
		Format int    `json:"format"`
		Agent  string `json:"agent"`
	}
	if err := json.Unmarshal(body, &other); err == nil && other.Format > Format {
		return nil, errs.New(errs.Config, "Use the version of the agent that wrote it ("+other.Agent+") or a newer one.",
			"backup %s has format %d; this agent reads format %d", name, other.Format, Format)
	}
	b := new(Backup)
	if err := json.Unmarshal(body, b); err != nil {
		return nil, s.damaged(fmt.Errorf("decode: %w", err), key)
	}
	if !ok || b.Format != Format {
		return nil, s.damaged(errors.New("it has no format, or not its SHA-256"), key)
	}
	if b.Name != name || b.Cluster != cluster {
		return nil, s.damaged(fmt.Errorf("it describes backup %s of cluster %s", b.Name, b.Cluster), key)
	}
	if !b.SegmentSize.Valid() || b.BlockSize <= 0 || b.StopLSN < b.StartLSN || b.Timeline == 0 {
		return nil, s.damaged(errors.New("its positions or sizes are impossible"), key)
	}
	return b, nil
}

// loads is how many small objects are read at a time.
const loads = 16

// Backups loads all backups of a cluster: one listing of each place and one
// small GET for each backup. Folders without backup.json are not backups and
// are left out. Those that can be read are returned also when the error says
// that some are damaged.
func (r *Repository) Backups(ctx context.Context, cluster ClusterID) ([]*Backup, error) {
	held, err := r.loadBackups(ctx, cluster, r.anywhere, probing)
	if err != nil {
		return nil, err
	}
	return held.read()
}

// BackupsToRead is Backups for who restores. If there is none at all, but their
// folders, somebody has emptied a bucket: then it finds those of which it keeps
// older versions.
func (r *Repository) BackupsToRead(ctx context.Context, cluster ClusterID) ([]*Backup, error) {
	held, err := r.loadBackups(ctx, cluster, r.anywhere, probing)
	if err == nil && len(held.Backups)+len(held.Unread) == 0 && len(held.Without) > 0 {
		held, err = r.loadBackups(ctx, cluster, r.anywhere, expected)
	}
	if err != nil {
		return nil, err
	}
	return held.read()
}

func (h *HeldBackups) read() ([]*Backup, error) {
	var failed []error
	for _, name := range slices.Sorted(maps.Keys(h.Unread)) {
		failed = append(failed, h.Unread[name])
	}
	return h.Backups, errors.Join(failed...)
}

// HeldBackups are the folders of backups in a cluster.
type HeldBackups struct {
	Backups []*Backup
	Unread  map[BackupName]error // those that exist, but cannot be read
	Without []BackupName         // folders without backup.json: no backup, or none any more
}

// HeldBackups is Backups for who removes some: all required places have to
// answer, and it says what else there is. A best-effort place that does not is left
// out from then on: a backup that is only there may borrow what is to be removed.
func (r *Repository) HeldBackups(ctx context.Context, cluster ClusterID) (*HeldBackups, error) {
	ask := func(f func(*place) error) error {
		return r.surely(func(p *place) error {
			err := f(p)
			if err != nil && !p.Required && ctx.Err() == nil {
				r.drop(p, err)
			}
			return err
		})
	}
	held, err := r.loadBackups(ctx, cluster, ask, probing)
	if err != nil {
		return nil, err
	}
	return held, r.doubted(ctx, cluster, held)
}

// doubted looks for the backups that were not found where that was not for
// certain: a best-effort place that could not give one a moment ago does not count
// when it is read.
func (r *Repository) doubted(ctx context.Context, cluster ClusterID, held *HeldBackups) error {
	for _, p := range r.up() {
		if p.Required {
			continue
		}
		for _, name := range held.Without {
			_, err := p.Bucket.Stat(ctx, cluster.backupKey(name))
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err == nil:
				held.Unread[name] = errs.New(errs.Storage, "Run it again.", "backup %s is in repository %s, but could not be read", name, p.Name)
			case !errors.Is(err, storage.ErrNotExist):
				r.drop(p, err)
			}
			if p.err() != nil {
				break
			}
		}
	}
	held.Without = slices.DeleteFunc(held.Without, func(name BackupName) bool { return held.Unread[name] != nil })
	return nil
}

func (r *Repository) loadBackups(ctx context.Context, cluster ClusterID, ask func(func(*place) error) error, how reading) (*HeldBackups, error) {
	names, err := backupNames(ctx, cluster, ask)
	if err != nil {
		return nil, err
	}
	loaded, failed := make([]*Backup, len(names)), make([]error, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(loads)
	for i, name := range names {
		g.Go(func() error {
			// One that a delete has hidden behind a marker, while others borrow
			// its packs, does not exist.
			b, err := r.loadBackup(gctx, cluster, name, how)
			switch errs.KindOf(err) {
			case errs.NotFound:
				return nil
			case errs.Damaged, errs.Config:
				failed[i] = err
				return nil
			}
			loaded[i] = b
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	held := &HeldBackups{Unread: make(map[BackupName]error)}
	for i, name := range names {
		switch {
		case failed[i] != nil:
			held.Unread[name] = failed[i]
		case loaded[i] != nil:
			held.Backups = append(held.Backups, loaded[i])
		default:
			held.Without = append(held.Without, name)
		}
	}
	return held, nil
}

// EncodePacks makes the list of a backup's packs, own and borrowed: a line of
// JSON for each, compressed and not sealed, so that retention and verification on
// a host without keys can work with it.
func (r *Repository) EncodePacks(packs []Pack) ([]byte, error) {
	enc, err := compress.NewEncoder(r.codec)
	if err != nil {
		return nil, fmt.Errorf("make encoder: %w", err)
	}
	var raw, body []byte
	flush := func() error {
		body, err = enc.AppendFrame(body, raw)
		raw = raw[:0]
		return err
	}
	for _, p := range packs {
		line, err := json.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("encode pack list: %w", err)
		}
		if len(raw)+len(line) >= compress.MaxFrame {
			if err := flush(); err != nil {
				return nil, fmt.Errorf("compress pack list: %w", err)
			}
		}
		raw = append(append(raw, line...), '\n')
	}
	if err := flush(); err != nil {
		return nil, fmt.Errorf("compress pack list: %w", err)
	}
	return body, nil
}

// StorePacks creates the list of the backup's packs, as EncodePacks made it.
func (r *Repository) StorePacks(ctx context.Context, cluster ClusterID, name BackupName, encoded []byte) (ObjectDigest, error) {
	info, err := r.putOwned(ctx, cluster.packsKey(name), cluster.backupKey(name), storage.Bytes(encoded))
	if err != nil {
		return ObjectDigest{}, fmt.Errorf("store pack list: %w", err)
	}
	return ObjectDigest{Size: info.Size, SHA256: info.SHA256}, nil
}

// LoadPacks reads the list of packs of a backup and checks it against
// backup.json. It is keyed by pack; own packs have the backup's own name.
func (r *Repository) LoadPacks(ctx context.Context, b *Backup) (map[PackID]Pack, error) {
	key := b.Cluster.packsKey(b.Name)
	stored, err := r.download(ctx, key, b.Packs)
	if err != nil {
		return nil, err
	}
	defer stored.Close()
	return r.decodePacks(b, io.NewSectionReader(stored.readerAt(), 0, stored.Size()))
}

// KeptPacks reads a list of packs of which this host has kept a copy, if it is
// still what was stored.
func (r *Repository) KeptPacks(b *Backup, encoded []byte) (map[PackID]Pack, error) {
	if int64(len(encoded)) != b.Packs.Size || sha256.Sum256(encoded) != b.Packs.SHA256 {
		return nil, errors.New("read the kept list of packs: it is not the one that was stored")
	}
	return r.decodePacks(b, bytes.NewReader(encoded))
}

func (r *Repository) decodePacks(b *Backup, stored io.Reader) (map[PackID]Pack, error) {
	packs := make(map[PackID]Pack)
	err := r.eachPack(b, stored, func(id PackID, p Pack) { packs[id] = p })
	return packs, err
}

// EachPack hands over the packs of a backup's list, own and borrowed, one after
// the other, for who keeps but a part of it in memory.
func (r *Repository) EachPack(ctx context.Context, b *Backup, use func(PackID, Pack)) error {
	stored, err := r.download(ctx, b.Cluster.packsKey(b.Name), b.Packs)
	if err != nil {
		return err
	}
	defer stored.Close()
	return r.eachPack(b, io.NewSectionReader(stored.readerAt(), 0, stored.Size()), use)
}

func (r *Repository) eachPack(b *Backup, stored io.Reader, use func(PackID, Pack)) error {
	raw := compress.NewReader(stored)
	defer raw.Close()
	d := json.NewDecoder(raw)
	// There are some ten thousand for each TB: what they have in common is kept
	// once.
	seen := make(map[string]string)
	once := func(s string) string {
		if _, ok := seen[s]; !ok {
			seen[s] = s
		}
		return seen[s]
	}
	for {
		var p Pack
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return r.malformed(err, b.Cluster.packsKey(b.Name))
		}
		p.Kind, p.Lender = PackKind(once(string(p.Kind))), BackupName(once(string(p.Lender)))
		id := PackID{p.Lender, p.Number}
		if id.Backup == "" {
			id.Backup = b.Name
		}
		use(id, p)
	}
}
