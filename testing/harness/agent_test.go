package harness

import "testing"

func TestAgent(t *testing.T) {
	if got := Agent(t, nil, "--help"); got.Code != 0 || got.Stdout == "" {
		t.Errorf("got %+v", got)
	}
	if got := Agent(t, nil, "no-such-command"); got.Code == 0 || got.Stderr == "" {
		t.Errorf("got %+v", got)
	}
}
