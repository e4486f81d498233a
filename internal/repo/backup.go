package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"walagent/internal/compress"
	"walagent/internal/errs"
	"walagent/internal/postgres"
	"walagent/internal/storage"
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
	Type            string               `json:"type"` // "full"
	Parent          BackupName           `json:"parent,omitempty"`
	Cluster         ClusterID            `json:"system_identifier,string"`
	PostgresVersion int                  `json:"postgres_version"` // server_version_num
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
	DataBytes       int64                `json:"data_bytes"`   // size of what is restored
	StoredBytes     int64                `json:"stored_bytes"` // size of the own packs
	PackCount       int64                `json:"pack_count"`
	Tablespaces     int                  `json:"tablespaces"`
	Host            string               `json:"host"`
	Machine         string               `json:"machine,omitempty"` // hash of the machine id
	StateID         string               `json:"state_id"`          // of the agent's state directory
	Directory       string               `json:"directory"`         // the data directory, links resolved
	User            string               `json:"user"`              // owner of the data directory
	Sealed          bool                 `json:"sealed"`
	Agent           string               `json:"agent"`
	Packs           ObjectDigest         `json:"packs"`
	Manifest        ObjectDigest         `json:"manifest"`
	// Signature is reserved for a detached signature over the other fields.
	Signature string `json:"signature,omitempty"`
	// Self is the SHA-256 of backup.json itself with its own 64 digits written
	// as zeros, so that damage to it is noticed like that to what it pins.
	Self Digest `json:"self_sha256"`
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
// comes after everything else is durable.
func (r *Repository) StoreBackup(ctx context.Context, b *Backup) error {
	body, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return fmt.Errorf("encode backup.json: %w", err)
	}
	if len(body) >= maxBackupJSON {
		return fmt.Errorf("encode backup.json: %d bytes are more than %d", len(body), maxBackupJSON)
	}
	body = append(body, '\n')
	digits, sum, ok := selfDigest(body)
	if !ok {
		return errors.New("encode backup.json: it has no place for its own hash")
	}
	copy(digits, sum.String())
	if _, err := r.putOwned(ctx, b.Cluster.backupKey(b.Name), storage.Bytes(body)); err != nil {
		return fmt.Errorf("store backup.json: %w", err)
	}
	return nil
}

// LoadBackup reads one backup.json. A backup that does not exist is NotFound.
func (r *Repository) LoadBackup(ctx context.Context, cluster ClusterID, name BackupName) (*Backup, error) {
	key := cluster.backupKey(name)
	body, err := r.readAll(ctx, key, maxBackupJSON)
	if errors.Is(err, storage.ErrNotExist) {
		return nil, errs.Wrap(err, errs.NotFound,
			"See what there is with: agent backup-list. A backup without backup.json was interrupted, is still running, or lost that object.",
			"there is no backup %s of cluster %s in %s", name, cluster, r)
	}
	if err != nil {
		return nil, err
	}
	digits, sum, ok := selfDigest(body)
	if ok && string(digits) != sum.String() {
		return nil, r.damaged(errors.New("its SHA-256 is not the one it carries"), key)
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
		return nil, r.damaged(fmt.Errorf("decode: %w", err), key)
	}
	if !ok || b.Format != Format {
		return nil, r.damaged(errors.New("it has no format, or not its SHA-256"), key)
	}
	if b.Name != name || b.Cluster != cluster {
		return nil, r.damaged(fmt.Errorf("it describes backup %s of cluster %s", b.Name, b.Cluster), key)
	}
	if !b.SegmentSize.Valid() || b.BlockSize <= 0 || b.StopLSN < b.StartLSN || b.Timeline == 0 {
		return nil, r.damaged(errors.New("its positions or sizes are impossible"), key)
	}
	return b, nil
}

// Backups loads all backups of a cluster: one listing and one small GET each.
// Folders without backup.json are not backups and are left out. Those that can
// be read are returned also when the error says that some are damaged.
func (r *Repository) Backups(ctx context.Context, cluster ClusterID) ([]*Backup, error) {
	var all []*Backup
	var damaged []error
	for dir, err := range r.bucket.Folders(ctx, cluster.backupPrefix()) {
		if err != nil {
			return nil, fmt.Errorf("list backups: %w", err)
		}
		name, err := ParseBackupName(dir)
		if err != nil {
			continue
		}
		b, err := r.LoadBackup(ctx, cluster, name)
		switch errs.KindOf(err) {
		case errs.NotFound:
			continue
		case errs.Damaged, errs.Config:
			damaged = append(damaged, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, errors.Join(damaged...)
}

// StorePacks creates the list of the backup's packs: a line of JSON for each,
// compressed and not sealed, so that retention and verification on a host
// without keys can work with it.
func (r *Repository) StorePacks(ctx context.Context, cluster ClusterID, name BackupName, packs []Pack) (ObjectDigest, error) {
	enc, err := compress.NewEncoder(r.codec)
	if err != nil {
		return ObjectDigest{}, fmt.Errorf("make encoder: %w", err)
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
			return ObjectDigest{}, fmt.Errorf("encode pack list: %w", err)
		}
		if len(raw)+len(line) >= compress.MaxFrame {
			if err := flush(); err != nil {
				return ObjectDigest{}, fmt.Errorf("compress pack list: %w", err)
			}
		}
		raw = append(append(raw, line...), '\n')
	}
	if err := flush(); err != nil {
		return ObjectDigest{}, fmt.Errorf("compress pack list: %w", err)
	}
	info, err := r.putOwned(ctx, cluster.packsKey(name), storage.Bytes(body))
	if err != nil {
		return ObjectDigest{}, fmt.Errorf("store pack list: %w", err)
	}
	return ObjectDigest{Size: info.Size, SHA256: info.SHA256}, nil
}

// LoadPacks reads the list of packs of a backup and checks it against
// backup.json. It is keyed by pack; own packs have the backup's own name.
func (r *Repository) LoadPacks(ctx context.Context, b *Backup) (map[PackID]Pack, error) {
	key := b.Cluster.packsKey(b.Name)
	stored, err := r.readAll(ctx, key, b.Packs.Size)
	if err != nil {
		return nil, r.missing(err, key)
	}
	if int64(len(stored)) != b.Packs.Size || Digest(sha256.Sum256(stored)) != b.Packs.SHA256 {
		return nil, r.damaged(errors.New("its SHA-256 is not the one in backup.json"), key)
	}
	raw := compress.NewReader(bytes.NewReader(stored))
	defer raw.Close()
	d := json.NewDecoder(raw)
	packs := make(map[PackID]Pack)
	for {
		var p Pack
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packs, nil
		}
		if err != nil {
			return nil, r.damaged(fmt.Errorf("decode: %w", err), key)
		}
		id := PackID{p.Lender, p.Number}
		if id.Backup == "" {
			id.Backup = b.Name
		}
		packs[id] = p
	}
}
