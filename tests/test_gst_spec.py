"""Specs of `csi:` and `gst:` sources, the pipelines that they mean, and what an error says to do. No GStreamer here."""

from __future__ import annotations

import pytest

from edge.camera import CameraError, open_camera
from edge.gst_spec import Csi, advice, complete, csi_pipeline, exposure_note, parse_csi


def test_a_bare_number_is_720p_at_30_handed_on_at_half_size():
    assert parse_csi("0") == Csi(0) and Csi(0).picture == (640, 360)
    assert csi_pipeline(parse_csi("0"), 50) == (
        "nvarguscamerasrc name=cam sensor-id=0 tnr-mode=0 ee-mode=0 wbmode=1 aeantibanding=2 aelock=false awblock=false"
        " ! video/x-raw(memory:NVMM),format=NV12,width=1280,height=720,framerate=30/1"
        " ! nvvidconv interpolation-method=2 ! video/x-raw,format=BGRx,width=640,height=360"
        " ! appsink name=sink sync=false max-buffers=4 drop=true")


def test_every_option_reaches_the_pipeline():
    asked = parse_csi("1,640x480@29.97,size=320x240,mode=3,exposure=8.333:20,gain=1:4.5,digital=1,wb=9,antibanding=1")
    text = csi_pipeline(asked, 60)
    for words in ("sensor-id=1 ", "width=640,height=480,framerate=2997/100 ", "width=320,height=240 ", "sensor-mode=3",
                  'exposuretimerange="8333000 20000000"', 'gainrange="1 4.5"', 'ispdigitalgainrange="1 1"', "wbmode=9",
                  "aeantibanding=1 "):
        assert words in text, words


@pytest.mark.parametrize(("taken", "picture"), [
    ((640, 480), (640, 480)), ((960, 540), (960, 540)), ((1280, 720), (640, 360)), ((1920, 1080), (960, 540)),
    ((3280, 2464), (820, 616))])
def test_pictures_are_handed_on_at_a_whole_fraction_at_most_960_wide(taken, picture):
    assert Csi(0, taken).picture == picture


def test_a_picture_that_is_not_scaled_needs_no_scaler():
    assert "nvvidconv ! video" in csi_pipeline(parse_csi("0,640x480"), 50)


@pytest.mark.parametrize(("spec", "mains_hz", "banding"), [
    ("0", 50, 2), ("0", 60, 3), ("0,exposure=10", 50, 0), ("0,exposure=5:20", 50, 2), ("0,exposure=10,antibanding=1", 50, 1)])
def test_the_exposure_follows_the_mains_unless_it_is_fixed(spec, mains_hz, banding):
    assert f"aeantibanding={banding} " in csi_pipeline(parse_csi(spec), mains_hz)


@pytest.mark.parametrize(("spec", "mains_hz", "flickers"), [
    ("0", 50, False), ("0,exposure=10", 50, False), ("0,exposure=20", 50, False), ("0,exposure=8", 50, True),
    ("0,exposure=5", 50, True), ("0,exposure=8.333", 60, False), ("0,exposure=10", 60, True), ("0,exposure=5:8", 50, False)])
def test_a_fixed_exposure_that_beats_with_the_lamps_is_told(spec, mains_hz, flickers):
    note = exposure_note(parse_csi(spec), mains_hz)
    assert (note is not None) == flickers and (note is None or "use a multiple of" in note)


@pytest.mark.parametrize(("spec", "message"), [
    ("", "expected csi:N"), ("front", "expected csi:N"), ("-1", "expected csi:N"), ("0,", "an empty option: expected WIDTHx"),
    ("0,1280*720", "expected WIDTHxHEIGHT@FPS"), ("0,1281x720", "even numbers"), ("0,12800x720", "even numbers"),
    ("0,@0", "expected WIDTHxHEIGHT@FPS"), ("0,tnr=1", "no such option; expected size, mode"),
    ("0,gain=4:1", "expected a number or LOW:HIGH from 1 to 256"), ("0,exposure=0", "expected a number or LOW:HIGH from 0.01"),
    ("0,exposure=nan", "expected a number"), ("0,mode=x", "whole number from 0 to 255"), ("0,wb=10", "from 0 to 9"),
    ('0,gain=1" ! filesink', "expected a number"), ("0,size=640", "expected WIDTHxHEIGHT"), ("٣", "expected csi:N")])
def test_a_wrong_spec_is_refused_with_what_was_expected(spec, message):
    with pytest.raises(CameraError, match=message) as caught:
        open_camera(f"csi:{spec}")
    assert str(caught.value).startswith(f"csi:{spec}: ")


def test_a_pipeline_without_a_sink_is_given_one():
    assert complete("videotestsrc") == ("videotestsrc ! videoconvert ! video/x-raw,format=BGRx"
                                        " ! appsink name=sink sync=false max-buffers=4 drop=true")
    own = "videotestsrc ! appsink sync=false name=sink"
    assert complete(own) == own


@pytest.mark.parametrize(("pipeline", "message"), [
    ("", "expected a pipeline such as"), ("videotestsrc ! appsink", "its appsink must be named"),
    ("videotestsrc name=sink2 ! appsink name=other", "its appsink must be named"), ("appsink name=sink", "a sink alone")])
def test_a_pipeline_without_a_usable_sink_is_refused(pipeline, message):
    with pytest.raises(CameraError, match=message):
        complete(pipeline)


@pytest.mark.parametrize(("words", "argus", "what"), [
    ("No cameras available", True, "ribbon cable"), ('no element "nvvidconv"', True, "nvidia-l4t-gstreamer"),
    ('no element "x264dec"', False, "gst-inspect-1.0"), ("whatever else", True, "restart nvargus-daemon"),
    ("whatever else", False, "gst-launch-1.0"), ("pictures arrive as I420, ...", False, "")])
def test_an_error_says_what_to_do(words, argus, what):
    assert (what in advice(words, argus)) if what else advice(words, argus) == ""
