package stores

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// echo is a server that answers with what it was sent, or with bytes of its own,
// and counts whole requests.
func echo(t *testing.T) (address string, whole *atomic.Int64) {
	whole = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		whole.Add(1)
		if r.Method == http.MethodGet {
			body = bytes.Repeat([]byte("x"), 1<<20)
		}
		_, _ = w.Write(body) // the proxy may have cut it
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), whole
}

func faulty(t *testing.T, limit time.Duration) (p *FaultProxy, get, put func() (int, error), whole *atomic.Int64) {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	address, whole := echo(t)
	p = NewFaultProxy(t, address)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	do := func(method string, body []byte) func() (int, error) {
		return func() (int, error) {
			// A request that might be repeated by the client itself is none.
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, method, "http://"+p.Address, io.NopCloser(bytes.NewReader(body)))
			if err != nil {
				return 0, err
			}
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			return len(got), err
		}
	}
	return p, do(http.MethodGet, nil), do(http.MethodPut, bytes.Repeat([]byte("y"), 1<<20)), whole
}

// Bytes pass as they are, whatever delays them.
func TestFaultProxyPasses(t *testing.T) {
	p, get, put, _ := faulty(t, time.Minute)
	for _, fault := range []struct {
		set   func()
		least time.Duration
	}{
		{func() {}, 0},
		{func() { p.Slice(t, 10_000) }, 0},
		{func() { p.Latency(t, 20*time.Millisecond) }, 20 * time.Millisecond},
		{func() { p.Bandwidth(t, 20_000) }, 60 * time.Millisecond},
	} {
		fault.set()
		for _, do := range []func() (int, error){get, put} {
			start := time.Now()
			if n, err := do(); n != 1<<20 || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
			if took := time.Since(start); took < fault.least {
				t.Errorf("took %v, want at least %v", took, fault.least)
			}
		}
	}
	p.Heal()
	if n, err := get(); n != 1<<20 || err != nil {
		t.Errorf("healed: %d bytes, %v", n, err)
	}
}

// A broken connection breaks where it should, as often as it should.
func TestFaultProxyBreaks(t *testing.T) {
	for name, fault := range map[string]struct {
		set   func(p *FaultProxy)
		upper bool // the fault is in the way of requests
		want  func(error) bool
		limit time.Duration // of a request
	}{
		"cut answer":    {func(p *FaultProxy) { p.Cut(Answers, 100_000, 2) }, false, isEOF, time.Minute},
		"cut request":   {func(p *FaultProxy) { p.Cut(Requests, 100_000, 2) }, true, func(err error) bool { return isEOF(err) || isReset(err) }, time.Minute},
		"reset answer":  {func(p *FaultProxy) { p.Reset(Answers, 100_000, 2) }, false, isReset, time.Minute},
		"reset request": {func(p *FaultProxy) { p.Reset(Requests, 100_000, 2) }, true, isReset, time.Minute},
		"hang answer":   {func(p *FaultProxy) { p.Hang(Answers, 100_000, 2) }, false, isTimeout, time.Second},
		"hang request":  {func(p *FaultProxy) { p.Hang(Requests, 0, 2) }, true, isTimeout, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			p, get, put, whole := faulty(t, fault.limit)
			do := get
			if fault.upper {
				do = put
			}
			fault.set(p)
			for range 2 {
				n, err := do()
				if !fault.want(err) || n > 100_000 {
					t.Errorf("%d bytes, %v", n, err)
				}
			}
			if n := p.Struck(); n != 2 {
				t.Errorf("%d connections were struck", n)
			}
			if n := whole.Load(); fault.upper && n > 0 {
				t.Errorf("%d requests came whole", n)
			}
			if n, err := do(); n != 1<<20 || err != nil {
				t.Errorf("after the fault: %d bytes, %v", n, err)
			}
			fault.set(p)
			p.Heal()
			if n, err := do(); n != 1<<20 || err != nil {
				t.Errorf("healed: %d bytes, %v", n, err)
			}
		})
	}
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func isReset(err error) bool {
	// The last is what net/http makes of it when its reader has seen it first.
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

func isTimeout(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

// While it is down connections are refused and those that were open end.
func TestFaultProxyDown(t *testing.T) {
	p, get, _, _ := faulty(t, time.Minute)
	if _, err := get(); err != nil {
		t.Fatal(err)
	}
	open, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for p.Accepted() < 2 {
		time.Sleep(time.Millisecond)
	}
	address := p.Address
	p.Down()
	p.Down()
	if _, err := open.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("open connection: %v", err)
	}
	if _, err := get(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while down: %v", err)
	}
	p.Up(t)
	p.Up(t)
	if n, err := get(); n != 1<<20 || err != nil || p.Address != address {
		t.Errorf("up again at %s: %d bytes, %v", p.Address, n, err)
	}
}

// A client that goes away in the middle, or stays when the test ends, leaves
// nothing of the proxy behind, whatever delays the bytes.
func TestFaultProxyStops(t *testing.T) {
	p, _, _, _ := faulty(t, time.Minute)
	p.Bandwidth(t, 100)
	p.Latency(t, 100*time.Millisecond)
	p.Slice(t, 1000)
	for _, stays := range []bool{false, true} {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if stays {
			t.Cleanup(func() { c.Close() })
		} else {
			c.Close()
		}
	}
}
