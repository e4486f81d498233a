package errs

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestKindAndHint(t *testing.T) {
	inner := New(Identity, "inner hint", "no identity for %s", "x")
	tests := map[string]struct {
		err        error
		kind       Kind
		hint, text string
	}{
		"nothing":                     {nil, Other, "", ""},
		"a plain error":               {io.EOF, Other, "", "EOF"},
		"classified":                  {inner, Identity, "inner hint", "no identity for x"},
		"wrapped":                     {fmt.Errorf("open: %w", inner), Identity, "inner hint", "open: no identity for x"},
		"the outermost kind":          {Wrap(inner, Damaged, "outer hint", "read"), Damaged, "inner hint", "read: no identity for x"},
		"the outermost that has one":  {Wrap(inner, Other, "outer hint", "read"), Identity, "inner hint", "read: no identity for x"},
		"the innermost hint there is": {Wrap(New(Damaged, "", "x"), Storage, "outer hint", "read"), Storage, "outer hint", "read: x"},
		"joined":                      {errors.Join(io.EOF, inner), Identity, "inner hint", "EOF\nno identity for x"},
		"only a cause":                {&Error{Kind: Locked, Err: io.EOF}, Locked, "", "EOF"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if k, h := KindOf(test.err), HintOf(test.err); k != test.kind || h != test.hint {
				t.Fatalf("kind %d, hint %q", k, h)
			}
			if test.err != nil && test.err.Error() != test.text {
				t.Fatalf("reads %q", test.err.Error())
			}
		})
	}
	if Wrap(nil, Damaged, "", "x") != nil {
		t.Fatal("no cause gives an error")
	}
	if err := Wrap(io.EOF, Damaged, "", "x"); !errors.Is(err, io.EOF) {
		t.Fatal("the cause is lost")
	}
}

// The exit codes are a contract with scripts, and stay below the 64 and above
// that have meanings of their own.
func TestExitCodes(t *testing.T) {
	want := map[Kind]int{
		Other: 1, Usage: 2, Config: 2, NotInitialised: 3, Foreign: 4, Storage: 5, Damaged: 6, NotFound: 7, Locked: 8,
		Server: 9, Destination: 10, Identity: 11, NoSpace: 12, BadPages: 13, Conflict: 14, Interrupted: 15, Gap: 16,
	}
	for k := range Gap + 10 {
		code, ok := want[k]
		if !ok {
			code = 1
		}
		if k.ExitCode() != code {
			t.Errorf("kind %d ends with %d, not %d", k, k.ExitCode(), code)
		}
	}
}
