package azure

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sync/errgroup"

	"agent/internal/storage"
)

// errStaging says that the right to stage blocks is missing.
var errStaging = errors.New("blocks cannot be staged")

const (
	blocksSent   = 2 // at a time
	blocksInHand = blocksSent + 1
)

// blocks sends the body as blocks and then makes a blob of them. It looks for
// the object first only to save the sending; Put Block List decides.
func (p *upload) blocks(ctx context.Context, body io.Reader) (sum [32]byte, err error) {
	if p.size > maxBlocks*blockSize {
		return sum, fmt.Errorf("%w: an object of %d bytes, more than %d", storage.ErrUnsupported, p.size, int64(maxBlocks*blockSize))
	}
	if _, err := p.to.GetProperties(ctx, nil); err == nil {
		return sum, storage.ErrExists
	} else if e := translate(ctx, "stat", err); !errors.Is(e, storage.ErrNotExist) && !errors.Is(e, storage.ErrPermission) {
		return sum, err
	}
	ids, sum, err := p.stage(ctx, body)
	if err != nil {
		return sum, err
	}
	if err := p.check(sum); err != nil {
		return sum, err
	}
	if ctx.Err() != nil {
		return sum, stopped(ctx)
	}
	_, err = p.to.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{
		Metadata: p.meta, Tier: p.b.tier, CPKScopeInfo: p.b.scope, AccessConditions: onlyNew(),
		ImmutabilityPolicyMode: p.mode, ImmutabilityPolicyExpiryTime: p.until,
	})
	return sum, err
}

// stage sends all blocks. Their names begin with a random number, since staged
// blocks belong to the key and not to a writer: without it two writers would
// replace each other's.
func (p *upload) stage(ctx context.Context, body io.Reader) (ids []string, sum [32]byte, err error) {
	id := make([]byte, 16)
	rand.Read(id) // never fails
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, gctx := errgroup.WithContext(ctx)
	free := make(chan []byte, blocksInHand)
	for range blocksInHand {
		free <- nil // made when it is needed
	}
	sha, table := sha256.New(), crcTable()
	read := func() error {
		for left := p.size; left > 0; {
			var buf []byte
			select {
			case buf = <-free:
			case <-gctx.Done():
				return nil // Wait has the reason
			}
			if buf == nil {
				buf = make([]byte, min(p.size, blockSize))
			}
			block := buf[:min(left, blockSize)]
			if err := fill(gctx, body, block); err != nil {
				return err
			}
			sha.Write(block)
			left -= int64(len(block))
			binary.BigEndian.PutUint32(id[12:], uint32(len(ids)))
			name := base64.StdEncoding.EncodeToString(id)
			ids = append(ids, name)
			group.Go(func() error {
				defer func() { free <- buf }()
				return p.stageOne(gctx, name, block, crc64.Checksum(block, table))
			})
		}
		return atEnd(gctx, body)
	}
	rerr := read()
	if rerr != nil && gctx.Err() == nil {
		cancel()
		_ = group.Wait() // what was cancelled says nothing new
		return nil, sum, rerr
	}
	if err := group.Wait(); err != nil {
		return nil, sum, err
	}
	if rerr != nil {
		return nil, sum, rerr
	}
	return ids, [32]byte(sha.Sum(nil)), nil
}

func (p *upload) stageOne(ctx context.Context, id string, block []byte, crc uint64) error {
	body := &sending{src: bytes.NewReader(block), size: int64(len(block))}
	_, err := p.to.StageBlock(ctx, id, body, &blockblob.StageBlockOptions{
		CPKScopeInfo: p.b.scope, TransactionalValidation: blob.TransferValidationTypeCRC64(crc),
	})
	_ = body.release() // memory has no errors
	if err == nil {
		return nil
	}
	// The original stays in the chain, for translate.
	if errors.Is(translate(ctx, "put", err), storage.ErrPermission) {
		return fmt.Errorf("%w: %w", errStaging, err)
	}
	return err
}
