package delta

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWhole(t *testing.T) {
	for _, test := range []struct {
		size int64
		want []Stretch
	}{
		{0, []Stretch{{0, 0}}},
		{1, []Stretch{{0, 1}}},
		{10, []Stretch{{0, 10}}},
		{11, []Stretch{{0, 10}, {10, 1}}},
		{30, []Stretch{{0, 10}, {10, 10}, {20, 10}}},
	} {
		if diff := cmp.Diff(test.want, slices.Collect(Whole(test.size, 10))); diff != "" {
			t.Errorf("%d bytes (-want +got):\n%s", test.size, diff)
		}
	}
	for s := range Whole(100, 10) {
		if s.Offset == 20 {
			break // a reader may stop early
		}
	}
}
