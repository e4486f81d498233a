package backup

import (
	"sync"
	"time"
)

// reporter calls Progress about once a second until it is stopped.
type reporter struct {
	mu   sync.Mutex
	what string
	quit chan struct{}
	done sync.WaitGroup
}

func startReporter(o Options, m *meter) *reporter {
	r := &reporter{what: "starting", quit: make(chan struct{})}
	if o.Progress == nil {
		return r
	}
	began := o.Now()
	r.done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.mu.Lock()
				what := r.what
				r.mu.Unlock()
				o.Progress(Progress{
					Phase: what, Read: m.read.Load(), Total: m.total.Load(),
					Stored: m.stored.Load(), Elapsed: o.Now().Sub(began),
				})
			case <-r.quit:
				return
			}
		}
	})
	return r
}

func (r *reporter) phase(what string) {
	r.mu.Lock()
	r.what = what
	r.mu.Unlock()
}

func (r *reporter) stop() {
	close(r.quit)
	r.done.Wait()
}
