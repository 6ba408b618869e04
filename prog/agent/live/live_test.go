package live

import (
	"sync"
	"testing"
	"testing/synctest"
)

func TestReadersSeeTheLastState(t *testing.T) {
	var v Value[string]
	if got, version := v.Read(); got != "" || version != 0 {
		t.Errorf("a new value holds %q, version %d; want the zero value, version 0", got, version)
	}
	v.Set("a")
	v.Set("b")
	if got, version := v.Read(); got != "b" || version != 2 || v.Get() != "b" {
		t.Errorf("after two states the value holds %q, version %d; want b, version 2", got, version)
	}
}

func TestChangedIsClosedByTheNextState(t *testing.T) {
	var v Value[int]
	v.Set(1)
	_, seen := v.Read()
	next, again := v.Changed(seen), v.Changed(seen)
	select {
	case <-next:
		t.Fatal("the channel was closed before a state was published, want it open")
	default:
	}
	v.Set(2)
	<-next
	<-again
}

// A state that is published between Read and Changed is not missed.
func TestNoChangeIsMissedBetweenReadAndChanged(t *testing.T) {
	var v Value[int]
	_, seen := v.Read()
	v.Set(1)
	<-v.Changed(seen)
}

// Each of many readers sees the last state in the end, however fast states follow each other.
func TestAllReadersSeeTheLastStateInTheEnd(t *testing.T) {
	synctest.Test(t, func(*testing.T) {
		var v Value[int]
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				for {
					value, seen := v.Read()
					if value == 1000 {
						return
					}
					<-v.Changed(seen)
				}
			})
		}
		for i := range 1000 {
			v.Set(i + 1)
		}
		readers.Wait()
	})
}
