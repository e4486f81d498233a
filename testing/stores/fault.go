package stores

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/rs/zerolog"
)

// Direction says which bytes of a connection a fault is about.
type Direction int

// The directions.
const (
	Requests Direction = iota // from the client to the store
	Answers                   // from the store to the client
)

// stream is toxiproxy's name for the direction.
func (d Direction) stream() stream.Direction {
	if d == Requests {
		return stream.Upstream
	}
	return stream.Downstream
}

// FaultProxy stands between a client and a store, passes their bytes on, those
// of TLS too, and does to them what bad networks do. All faults may be set at
// any time and are for connections that are open and for later ones.
//
// What delays bytes is toxiproxy's. What breaks connections is not: its toxics
// limit_data, reset_peer and timeout leave goroutines behind when a connection
// ends before its bytes do, and break every connection or none. Here a fault
// may be for the next few connections only, the place is exact, and Struck
// tells that it has happened.
type FaultProxy struct {
	Address string // host:port, the same for the proxy's life

	upstream string
	server   *toxiproxy.ApiServer
	toxics   *toxiproxy.ToxicCollection
	running  sync.WaitGroup // accept loops and the two directions of each link

	mu       sync.Mutex
	listener net.Listener // nil while down
	links    map[*link]bool
	breaks   [2]*breakage // by direction
	struck   int
	accepted int
}

// breakage ends or stops a connection behind some bytes of one direction.
type breakage struct {
	kind  breakKind
	after int64 // bytes of one connection, since the fault was set
	times int   // connections still to be broken; negative: all
}

type breakKind int

const (
	cutting   breakKind = iota // FIN
	resetting                  // RST
	hanging                    // nothing more, and no end
)

// Always is for faults of every connection.
const Always = -1

// NewFaultProxy starts a proxy to upstream (host:port) without faults. It and
// all its goroutines are stopped when the test ends.
func NewFaultProxy(t testing.TB, upstream string) *FaultProxy {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // some toxics log by the global logger
	p := &FaultProxy{
		upstream: upstream,
		server:   toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()),
		links:    map[*link]bool{},
	}
	p.toxics = toxiproxy.NewProxy(p.server, "fault", "", upstream).Toxics
	p.Address = "127.0.0.1:0"
	p.Up(t)
	t.Cleanup(func() {
		p.Down()
		// Cuts short what still waits for its delay.
		p.toxics.ResetToxics(context.Background())
		p.running.Wait()
	})
	return p
}

// Up lets connections in again, at the same address.
func (p *FaultProxy) Up(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		return
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", p.Address)
	if err != nil {
		t.Fatalf("start the fault proxy: %v", err)
	}
	p.Address, p.listener = l.Addr().String(), l
	p.running.Go(func() { p.accept(l) })
}

// Down resets all connections and refuses new ones.
func (p *FaultProxy) Down() {
	p.mu.Lock()
	if p.listener != nil {
		_ = p.listener.Close() // nobody accepts from it any more
		p.listener = nil
	}
	p.mu.Unlock()
	p.Drop()
}

// Drop resets all open connections.
func (p *FaultProxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.abort(true)
	}
}

// Heal takes all faults away. Connections that hang are reset: bytes of theirs
// are lost.
func (p *FaultProxy) Heal() {
	p.toxics.ResetToxics(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.breaks = [2]*breakage{}
	for l := range p.links {
		if l.hung() {
			l.abort(true)
		}
	}
}

// Accepted is how many connections clients have made.
func (p *FaultProxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Struck is how many connections were cut, reset or made to hang.
func (p *FaultProxy) Struck() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.struck
}

// Latency lets each answer come later, however many bytes it has.
func (p *FaultProxy) Latency(t testing.TB, d time.Duration) {
	t.Helper()
	p.toxic(t, "latency", Answers, map[string]int64{"latency": d.Milliseconds()})
}

// Bandwidth limits each direction of each connection, in units of 1,000 bytes
// per second.
func (p *FaultProxy) Bandwidth(t testing.TB, kilobytes int64) {
	t.Helper()
	for _, d := range []Direction{Requests, Answers} {
		p.toxic(t, "bandwidth", d, map[string]int64{"rate": kilobytes})
	}
}

// Slice passes bytes on in pieces of about size bytes, in both directions.
func (p *FaultProxy) Slice(t testing.TB, size int64) {
	t.Helper()
	for _, d := range []Direction{Requests, Answers} {
		p.toxic(t, "slicer", d, map[string]int64{"average_size": size, "size_variation": size / 2, "delay": 1})
	}
}

// Cut ends the next times connections in an orderly way (FIN) behind the first
// bytes of a direction, as a server does that is stopped.
func (p *FaultProxy) Cut(d Direction, bytes int64, times int) { p.set(d, cutting, bytes, times) }

// Reset ends the next times connections abruptly (RST) behind the first bytes of
// a direction.
func (p *FaultProxy) Reset(d Direction, bytes int64, times int) { p.set(d, resetting, bytes, times) }

// Hang lets everything behind the first bytes of a direction vanish on the next
// times connections, which stay open, as behind a firewall that has forgotten
// them.
func (p *FaultProxy) Hang(d Direction, bytes int64, times int) { p.set(d, hanging, bytes, times) }

func (p *FaultProxy) set(d Direction, kind breakKind, after int64, times int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.breaks[d] = &breakage{kind: kind, after: after, times: times}
	for l := range p.links {
		l.ends[d].passed = 0
	}
}

func (p *FaultProxy) toxic(t testing.TB, kind string, d Direction, attributes map[string]int64) {
	t.Helper()
	spec, err := json.Marshal(map[string]any{"type": kind, "stream": d.stream().String(), "attributes": attributes})
	if err == nil {
		_, err = p.toxics.AddToxicJson(strings.NewReader(string(spec)))
	}
	if err != nil {
		t.Fatal(fmt.Errorf("set the fault %s: %w", kind, err))
	}
}

func (p *FaultProxy) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return // it is down
		}
		store, err := (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp", p.upstream)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.join(listener, client, store)
	}
}

// join makes a link of two connections, unless the proxy went down meanwhile.
func (p *FaultProxy) join(listener net.Listener, client, store net.Conn) {
	p.mu.Lock()
	p.accepted++
	l := &link{client: client, store: store}
	l.ends[Requests] = &end{p: p, link: l, direction: Requests, to: store}
	l.ends[Answers] = &end{p: p, link: l, direction: Answers, to: client}
	down := p.listener != listener
	if down {
		l.abort(true)
	} else {
		p.links[l] = true
		p.running.Add(2)
	}
	name := fmt.Sprintf("%d-", p.accepted)
	p.mu.Unlock()
	if !down {
		p.toxics.StartLink(p.server, name+"requests", client, l.ends[Requests], stream.Upstream)
		p.toxics.StartLink(p.server, name+"answers", store, l.ends[Answers], stream.Downstream)
	}
}
